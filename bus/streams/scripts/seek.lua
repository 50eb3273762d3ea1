#!lua flags=no-writes,allow-oom
-- Go along a partition from an id, message by message, in portions: where one is then.
-- KEYS    1 stream
-- ARGV    1 from this id   2 "forward": to what comes after it, or "back": from it on to what comes before
--         3 how many messages at most   4 after how many bytes it is enough
-- Reply   {how many, the last of them, "" if there was none, 1 if there are no more, else 0}
local stream, from, forward = KEYS[1], ARGV[1], ARGV[2] == 'forward'
local most, enough = tonumber(ARGV[3]), tonumber(ARGV[4])
-- So few at once, because XRANGE reads them whole, and any may be large, whatever stands before it.
local found, bytes, last, ended = 0, 0, '', 0
if forward then from = '(' .. from end
while found < most and bytes < enough do
  local page = math.min(3, most - found)
  local entries
  if forward then
    entries = redis.call('XRANGE', stream, from, '+', 'COUNT', page)
  else
    entries = redis.call('XREVRANGE', stream, from, '-', 'COUNT', page)
  end
  for _, entry in ipairs(entries) do
    found, last = found + 1, entry[1]
    for _, text in ipairs(entry[2]) do bytes = bytes + #text end
  end
  from = '(' .. last
  if #entries < page then
    ended = 1
    break
  end
end
return {found, last, ended}

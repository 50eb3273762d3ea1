#!lua flags=no-writes,allow-oom
-- Count messages of a partition, in portions: no message leaves the server, and no script takes long.
-- KEYS    1 stream
-- ARGV    1 count what comes after this id   2 up to this one   3 how many at most   4 after how many bytes it is enough
-- Reply   {how many, the last of them, or "" if that were all}
local stream, after, up_to, most, enough = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

-- @include size_of

-- So few at once, because XRANGE reads them whole, and any may be large, whatever stands before it.
local counted, bytes, page = 0, 0, 3
while counted < most and bytes < enough do
  local entries = redis.call('XRANGE', stream, '(' .. after, up_to, 'COUNT', page)
  counted = counted + #entries
  if #entries < page then return {counted, ''} end
  after = entries[page][1]
  for _, entry in ipairs(entries) do bytes = bytes + size_of(entry[2]) end
end
return {counted, after}

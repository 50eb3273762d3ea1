#!lua flags=no-writes
-- Which messages are dead letters: ids alone, of a bounded part of the letters.
-- KEYS    1 dead
-- ARGV    1 after which letter ("0-0": from the first)   2 how many at most   3 bytes that are enough for one look
-- Reply   {how many letters there are, the last id that one was given, [[letter id, message id], …]}
--
-- Letters hold their messages, so they are read one by one until enough has been read.
local dead, after, count, enough = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('EXISTS', dead) == 0 then return {0, '0-0', {}} end

-- @include named
-- @include size_of

local last = named(redis.call('XINFO', 'STREAM', dead))['last-generated-id']

local letters, read = {}, 0
while #letters < count and read < enough do
  local entry = redis.call('XRANGE', dead, '(' .. after, '+', 'COUNT', 1)[1]
  if not entry then break end
  local id = ''
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'id' and id == '' then id = entry[2][i + 1] end
  end
  read = read + size_of(entry[2])
  after = entry[1]
  letters[#letters + 1] = {after, id}
end
return {redis.call('XLEN', dead), last, letters}

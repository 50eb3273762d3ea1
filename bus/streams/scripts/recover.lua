#!lua flags=allow-oom
-- Left-overs of a lane: what is pending there and neither waits for a retry nor is held back.
-- KEYS    1 stream   2 lease   3 retry   4 held   5 state
-- ARGV    1 lease value   2 group   3 lane   4 where to begin ("-" or "(id")   5 how many to look at
--         6 ordering ("key", "partition" or "none")
-- Reply   {0, lease value there}, or {1, entries, where to go on ("" = that was all)}
--
-- In ordered groups what is pending under another name (of an earlier ordering) comes to this lane, and names
-- with nothing pending go. Pending ids whose entry is gone from the stream are acknowledged and counted as lost
-- by trimming.
local stream, lease, retry, held, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, lane, ordering = ARGV[2], ARGV[3], ARGV[6]
-- Messages, each of which is looked up in four keys, and bytes of them. The rest is for the next page: no script holds
-- the server for more than 5 ms (benchmarks/scripts.py measures it).
local count, enough = math.min(150, tonumber(ARGV[5])), 256 * 1024

local current = redis.call('GET', lease) or ''
if current ~= ARGV[1] then return {0, current} end

-- @include pad
-- @include named
-- @include size_of
-- @include key_hash
-- @include held_member

redis.call('HLEN', state) -- a key of another type is found before anything is written
local rows
if ordering == 'none' then
  rows = redis.call('XPENDING', stream, group, ARGV[4], '+', count, lane)
else
  rows = redis.call('XPENDING', stream, group, ARGV[4], '+', count)
end
local entries, bytes, last = {}, 0, nil
for _, row in ipairs(rows) do
  if bytes >= enough then break end
  local id = row[1]
  last = id
  if row[2] ~= lane then redis.call('XCLAIM', stream, group, lane, 0, id, 'JUSTID') end
  if not redis.call('ZSCORE', retry, id) then
    local entry = redis.call('XRANGE', stream, id, id)[1]
    if entry then bytes = bytes + size_of(entry[2]) end
    if not entry then
      redis.call('XACK', stream, group, id)
      redis.call('HDEL', state, id)
      redis.pcall('HINCRBY', state, 'trimmed', 1) -- unless somebody has overwritten it
    elseif ordering == 'none' or not redis.call('ZSCORE', held, held_member(key_hash(ordering, entry[2]), pad(id))) then
      entries[#entries + 1] = entry
    end
  end
end
local more = last and (#rows == count or last ~= rows[#rows][1])
if not more and ordering ~= 'none' then
  for _, raw in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local consumer = named(raw)
    if consumer['name'] ~= lane and consumer['pending'] == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer['name'])
    end
  end
end
return {1, entries, more and '(' .. last or ''}

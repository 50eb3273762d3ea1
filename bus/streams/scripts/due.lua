#!lua flags=allow-oom
-- Messages whose retry is due, by the server's clock.
-- KEYS    1 stream   2 lease   3 retry   4 state
-- ARGV    1 lease value   2 group   3 lane   4 how many at most   5 "1" to claim them for this lane
-- Reply   {0, lease value there}, or
--         {1, entries, their states, [[id, state], …] whose entry was trimmed, next due ms or -1}
--
-- In ordered groups a due message stays in the retry zset until it is settled: it keeps its key
-- held back. Claiming (ordering "none", where lanes share the zset) takes it out, so that no other
-- lane runs it too; it is then an ordinary left-over of the lane that claimed it. Its state stays until it is
-- settled: it may lie below the mark, and if the group is gone now nothing else says that it is open
-- (giveback.lua).
local stream, lease, retry, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, lane, claim = ARGV[2], ARGV[3], ARGV[5] == '1'

local current = redis.call('GET', lease) or ''
if current ~= ARGV[1] then return {0, current} end

-- @include milliseconds
-- @include size_of
-- @include next_due

local now = milliseconds(redis.call('TIME'))
local entries, states, trimmed = {}, {}, {}
redis.call('XLEN', stream) -- a key of another type is no fault of the ids
-- What comes after so many bytes, or messages, stays due, for the next turn: no script holds the server for more than
-- 5 ms (benchmarks/scripts.py measures it).
local bytes, enough = 0, 256 * 1024
local most = math.min(150, tonumber(ARGV[4]))

-- The entry; nil if it is gone; false for a member that is no id, which only somebody else can have put here.
local function entry_of(id)
  if not id:match('^%d+%-%d+$') then return false end
  local reply = redis.pcall('XRANGE', stream, id, id) -- an error for what is beyond 64 bits
  if reply.err or (reply[1] and reply[1][1] ~= id) then return false end
  return reply[1]
end

local function take(id)
  local entry = entry_of(id)
  local record = entry ~= false and redis.call('HGET', state, id) or ''
  if entry then bytes = bytes + size_of(entry[2]) end
  if entry == false then
    -- It is never due: else it would be in the way of those behind it, again and again.
    redis.call('ZADD', retry, 'XX', '+inf', id)
  elseif entry then
    -- FORCE: a group that was gone and made again does not know it as pending, so nothing could be settled.
    if claim or #redis.call('XPENDING', stream, group, id, id, 1, lane) == 0 then
      redis.call('XCLAIM', stream, group, lane, 0, id, 'FORCE', 'JUSTID')
    end
    if claim then
      if record == '' then
        record = '{"k":"","a":0}'
        redis.call('HSET', state, id, record)
      end
      redis.call('ZREM', retry, id)
    end
    entries[#entries + 1] = entry
    states[#states + 1] = record
  else
    -- Forgotten by the turn that releases the next of its key, or that would wait for ever.
    trimmed[#trimmed + 1] = {id, record}
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', retry, '-inf', now + 1, 'LIMIT', 0, most)) do
  if bytes >= enough then break end
  take(id)
end
return {1, entries, states, trimmed, next_due(retry)}

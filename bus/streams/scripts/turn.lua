#!lua flags=allow-oom
-- Settle a turn that has outcomes other than "done", under the lease; fetch too if asked.
-- KEYS    1 stream   2 lease   3 retry   4 held   5 state   6 dead   7 mark     (all of one group)
-- ARGV    1 lease value   2 group   3 lane   4 how many new messages to fetch (0 = none)
--         5 dead letters kept at most   6 the outcomes as JSON, see below   7 the new mark, "" to leave it
-- Outcomes:
--           done    [id, …]
--           retry   [[id, delay ms, state as JSON], …]
--           noted   [[id, state as JSON], …]           an attempt recorded before the handler runs
--           held    [[id, padded id, key hash], …]
--           dead    [[id, reason, error, attempts, first failure ms], …]
--           release [key hash, …]                      keys whose head has just been settled
--           clear   [state field, …]                   such as suspect:<lane>, when recovery is over
--           trimmed [id, …]                            retries whose entry is gone from the stream
-- Reply   {0, lease value there}, or {2} if dead letters were large: the same must be sent once more, or
--         {1, new entries, [[id, key hash], …] released, retrying, held, next due ms or -1}
--
-- Everything is checked first and recorded before it is acknowledged; sending the same settle again
-- (the reply was lost) changes nothing, because only what is still pending in this lane is touched.
local stream, lease, retry, held, state, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local mine, group, lane = ARGV[1], ARGV[2], ARGV[3]
local fetch, dead_limit, outcomes = tonumber(ARGV[4]), tonumber(ARGV[5]), cjson.decode(ARGV[6])
-- So many that wait behind a settled message are released, over all keys; the others when those are settled. Each costs
-- four commands, and no script holds the server for more than 5 ms (benchmarks/scripts.py measures it).
local release_batch = math.max(1, math.min(100, math.floor(150 / math.max(1, #outcomes.release))))
-- Letters beyond the limit that go at once, where the limit was made smaller.
local most_dropped = 100
-- Bytes of dead letters that are copied in one go, for the same reason.
local enough = 256 * 1024

local current = redis.call('GET', lease) or ''
if current ~= mine then return {0, current} end

-- A key of another type is found now, before anything is written.
redis.call('ZCARD', retry)
redis.call('HLEN', state)
redis.call('XLEN', dead)
if redis.call('ZCARD', held) > 0 then
  -- Held are all with score 0, in the order of their text; a stranger's score would hide others from a range.
  for _, range in ipairs({{'-inf', '(0'}, {'(0', '+inf'}}) do
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', held, range[1], range[2], 'LIMIT', 0, 100)) do
      redis.call('ZADD', held, 'XX', 0, member)
    end
  end
end

-- @include milliseconds
-- @include held_member
-- @include next_due
-- @include unpad
-- @include decoded
-- @include with_field

local now = milliseconds(redis.call('TIME'))

-- A counter that somebody else has overwritten must not undo, half way, what is settled: it counts no more.
local function count(name, by)
  redis.pcall('HINCRBY', state, name, by)
end

local function is_pending(id)
  return #redis.call('XPENDING', stream, group, id, id, 1, lane) == 1
end

local function forget(id)
  redis.call('XACK', stream, group, id)
  redis.call('ZREM', retry, id)
  redis.call('HDEL', state, id)
end

local copied = 0
for _, item in ipairs(outcomes.dead) do
  if copied >= enough then return {2} end
  local id, reason, err, attempts, first = item[1], item[2], item[3], item[4], item[5]
  if is_pending(id) then
    local fields = {'id', id, 'reason', reason, 'error', err, 'attempts', attempts, 'first', first, 'last', now}
    local entry = redis.call('XRANGE', stream, id, id)[1]
    if entry then
      -- unpack() takes just under 8,000 values; a foreign entry may have more than that.
      for i = 1, math.min(#entry[2], 6000) do
        fields[#fields + 1] = entry[2][i]
        copied = copied + #entry[2][i]
      end
    end
    redis.call('XADD', dead, '*', unpack(fields))
    count('dead', 1)
    local over = redis.call('XLEN', dead) - dead_limit
    local dropping = math.min(over, most_dropped)
    if dropping > 0 then
      local dropped = redis.call('XTRIM', dead, 'MAXLEN', dead_limit + over - dropping)
      most_dropped = most_dropped - dropped + 1
      count('dead_dropped', dropped)
    end
    forget(id)
  end
end

for _, item in ipairs(outcomes.retry) do
  if is_pending(item[1]) then
    redis.call('HSET', state, item[1], item[3])
    redis.call('ZADD', retry, now + item[2], item[1])
  end
end

for _, item in ipairs(outcomes.noted) do
  if is_pending(item[1]) then redis.call('HSET', state, item[1], item[2]) end
end

for _, item in ipairs(outcomes.held) do
  if is_pending(item[1]) then
    redis.call('ZREM', retry, item[1])
    redis.call('ZADD', held, 0, held_member(item[3], item[2]))
  end
end

for _, id in ipairs(outcomes.done) do forget(id) end
for _, id in ipairs(outcomes.trimmed) do
  -- One that was held back is counted already if recovery found it gone, and has acknowledged it.
  -- One that was gone when its group was made again is not pending (see giveback.lua).
  local record = decoded(redis.call('HGET', state, id))
  if record and record.g == 1 or #redis.call('XPENDING', stream, group, id, id, 1) == 1 then count('trimmed', 1) end
  forget(id)
end
for _, name in ipairs(outcomes.clear) do redis.call('HDEL', state, name) end

-- A settled head lets the next of its key go, before anything newer of that key can be fetched.
-- Whoever has it next must know what it is tied to: of one that was in hand when its process died nobody did.
local function tie(id, hash)
  local raw = redis.call('HGET', state, id)
  local record = decoded(raw)
  if not record or record.k ~= hash then
    redis.call('HSET', state, id, with_field(raw, record, 'k', cjson.encode(hash)) or cjson.encode({k = hash, a = 0}))
  end
end

-- Up to 100 of a key. What is no id, which only somebody else can have put there, is removed: it would be in
-- the way of those behind it.
local released = {}
local function release(hash)
  for _ = 1, 10 do
    local members = redis.call('ZRANGEBYLEX', held, '[' .. hash .. ':', '(' .. hash .. ';', 'LIMIT', 0, release_batch)
    local moved = 0
    for _, member in ipairs(members) do
      local id = unpad(member:sub(#hash + 2))
      redis.call('ZREM', held, member)
      if id then
        -- A thousandth of a millisecond apart, so that their order by due time is their order by id.
        redis.call('ZADD', retry, string.format('%.3f', now + moved / 1000), id)
        tie(id, hash)
        released[#released + 1] = {id, hash}
        moved = moved + 1
      end
    end
    if moved > 0 or #members < release_batch then return end
  end
end
for _, hash in ipairs(outcomes.release) do release(hash) end

if ARGV[7] ~= '' then redis.call('SET', KEYS[7], ARGV[7]) end

local entries = {}
if fetch > 0 then
  local reply = redis.call('XREADGROUP', 'GROUP', group, lane, 'COUNT', fetch, 'STREAMS', stream, '>')
  if reply then entries = reply[1][2] end
end

return {1, entries, released, redis.call('ZCARD', retry), redis.call('ZCARD', held), next_due(retry)}

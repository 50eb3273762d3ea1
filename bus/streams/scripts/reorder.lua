#!lua flags=allow-oom
-- Put another ordering of a group into effect in one partition, once nothing waits there under the old one.
-- KEYS    1 stream   2 retry   3 held   4 state   5… leases of all lanes     (all of one group)
-- ARGV    1 group   2 the ordering that is wanted   3 the one in effect where none is recorded
--         4 a lease value that frees a lane, never used before   5… names of the lanes, in the order of the leases
-- Reply   {ordering in effect, 0}, or {ordering in effect, how many messages wait}; -1: a lane is not among the given
--
-- Every lane is freed in the same step, so that no slice goes on under what it knew; names of lanes that only the
-- old ordering had go. A lane that has been taken has its name (see lease.lua), so none is missed.
local stream, retry, held, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, declared = ARGV[1], ARGV[2]

local effect = redis.call('HGET', state, 'ordering')
if not effect then
  effect = ARGV[3]
  redis.call('HSET', state, 'ordering', effect)
end
if effect == declared then return {effect, 0} end

local pending = redis.pcall('XPENDING', stream, group)
local waiting = math.max(pending.err and 0 or pending[1], redis.call('ZCARD', retry) + redis.call('ZCARD', held))
if waiting > 0 then return {effect, waiting} end

-- @include named

local given = {}
for i = 5, #ARGV do given[ARGV[i]] = true end
local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, group)
for _, raw in ipairs(consumers.err and {} or consumers) do
  if not given[named(raw)['name']] then return {effect, -1} end
end

redis.call('HSET', state, 'ordering', declared)
for i = 5, #KEYS do
  local lane = ARGV[i]
  if lane == '0' then
    if redis.call('EXISTS', KEYS[i]) == 1 then redis.call('SET', KEYS[i], ARGV[4]) end
  else
    redis.call('DEL', KEYS[i])
    redis.pcall('XGROUP', 'DELCONSUMER', stream, group, lane)
  end
end
return {declared, 0}

#!lua flags=allow-oom
-- Begin to reset a group in one partition: note where it is to go on, fence its lanes, drop what waits.
-- KEYS    1 stream   2 mark   3 retry   4 held   5 state   6… leases of all lanes     (all of one group)
-- ARGV    1 group   2 a lease value that frees a lane, never used before
--         3 the reset as JSON, see below   4 the position that is expected, "" for any   5 the era that is expected
--         6… names of the lanes, in the order of the leases
-- Reply   {1, position, pending, retrying, held}, as they were;
--         {0, why}: "era" or "position" is another one, "lane": a lane is not among the given,
--         "giving": a lost group is not given back all of it yet, "reset": another reset is not at its end
--
-- The reset, in field `reset` of the state:
--   {"to": id after which the group goes on, "read": messages ever added up to it, "era": the era from then on}
-- While it is there nobody takes a lane (lease.lua), gives a dead letter back (redrive.lua), or trims (trim.lua);
-- whoever meets it brings it to its end (reset_rest.lua). So it happens whole, whoever dies when. A group that is
-- lost meanwhile is made again at the mark, which is where the reset leads.
local stream, mark, retry, held, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, free, reset, expected, era = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

-- @include last_delivered

local position = last_delivered(redis.call('XINFO', 'GROUPS', stream), group)
if not position then return redis.error_reply('NOGROUP No such consumer group') end
if (redis.call('HGET', state, 'era') or '') ~= era then return {0, 'era'} end
if expected ~= '' and expected ~= position then return {0, 'position'} end
if redis.call('HEXISTS', state, 'giving') == 1 then return {0, 'giving'} end
if redis.call('HEXISTS', state, 'reset') == 1 then return {0, 'reset'} end

local given = {}
for i = 6, #ARGV do given[ARGV[i]] = true end
for _, raw in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  for i = 1, #raw, 2 do
    if raw[i] == 'name' and not given[raw[i + 1]] then return {0, 'lane'} end
  end
end

local counts = {redis.call('XPENDING', stream, group)[1], redis.call('ZCARD', retry), redis.call('ZCARD', held)}
redis.call('HSET', state, 'reset', reset)
redis.call('SET', mark, cjson.decode(reset)['to'])
redis.call('UNLINK', retry, held)
for i = 6, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then redis.call('SET', KEYS[i], free) end
end
return {1, position, unpack(counts)}

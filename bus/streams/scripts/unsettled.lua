#!lua flags=no-writes
-- One look at what a group has been given and has not settled, with what says how much the look is worth.
-- KEYS    1 stream   2 state   3 dead     (all of one group)
-- ARGV    1 group   2 from ("-", or "(id" to go on)   3 up to which id   4 how many pending ids at most
-- Reply   nil where the stream or the group is missing, or
--         {era, the last id that the group was given, the last id among its dead letters, pending ids}
local stream, group = KEYS[1], ARGV[1]
if redis.call('EXISTS', stream) == 0 then return nil end

-- @include last_delivered
-- @include named

local position = last_delivered(redis.call('XINFO', 'GROUPS', stream), group)
if not position then return nil end

local last = '0-0'
if redis.call('EXISTS', KEYS[3]) == 1 then
  last = named(redis.call('XINFO', 'STREAM', KEYS[3]))['last-generated-id']
end

local ids = {}
for _, row in ipairs(redis.call('XPENDING', stream, group, ARGV[2], ARGV[3], ARGV[4])) do ids[#ids + 1] = row[1] end
return {redis.call('HGET', KEYS[2], 'era') or '', position, last, ids}

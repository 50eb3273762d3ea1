#!lua flags=allow-oom
-- The mark of an unordered group, whose many lanes cannot know it: all before it is settled. In pages.
-- KEYS    1 stream   2 mark   3 retry
-- ARGV    1 group   2 where to go on among what is pending ("-" = at the beginning)   3 how many to look at
-- Reply   {the mark, ""}; {"", where to go on} where all of this page waits for a retry; nil where the group or
--         the stream is missing
local stream, group, count = KEYS[1], ARGV[1], tonumber(ARGV[3])
if redis.call('EXISTS', stream) == 0 then return nil end

-- @include last_delivered

local position = last_delivered(redis.call('XINFO', 'GROUPS', stream), group)
if not position then return nil end

-- The first that is in somebody's hands; what waits for a retry is known from the retry zset.
local page = redis.call('XPENDING', stream, group, ARGV[2], '+', count)
for _, row in ipairs(page) do
  if not redis.call('ZSCORE', KEYS[3], row[1]) then
    local before = redis.call('XREVRANGE', stream, '(' .. row[1], '-', 'COUNT', 1)[1]
    local mark = before and before[1] or '0-0'
    redis.call('SET', KEYS[2], mark)
    return {mark, ''}
  end
end
if #page == count then return {'', '(' .. page[#page][1]} end
redis.call('SET', KEYS[2], position)
return {position, ''}

#!lua flags=allow-oom
-- Bring a reset to its end, a page at a time: what was pending is forgotten, and then the group moves.
-- KEYS    1 stream   2 mark   3 retry   4 held   5 state     (all of one group)
-- ARGV    1 group   2 how many to look at   3 where to go on in the state ("0" = at the beginning)
-- Reply   "" if that was all, or no reset is on its way; else where to go on
--
-- It may be repeated and interrupted anywhere, and two may do it at once: nobody holds a lane meanwhile (see
-- reset.lua), so nothing comes that is not to be forgotten.
local stream, mark, retry, held, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, count = ARGV[1], tonumber(ARGV[2])

-- @include decoded
-- @include last_delivered

local raw = redis.call('HGET', state, 'reset')
if not raw then return '' end
local reset = decoded(raw)
local sound = reset and type(reset.to) == 'string' and reset.to:match('^%d+%-%d+$') and type(reset.era) == 'string'
  and type(reset.read) == 'number' and reset.read >= 0
if not sound then -- none of ours: it must not stop the group for good
  redis.call('HDEL', state, 'reset')
  return ''
end
local position = last_delivered(redis.call('XINFO', 'GROUPS', stream), group)
if not position then return redis.error_reply('NOGROUP No such consumer group') end

local rows = redis.call('XPENDING', stream, group, '-', '+', count)
if #rows > 0 then
  local ids = {}
  for i, row in ipairs(rows) do ids[i] = row[1] end
  redis.call('XACK', stream, group, unpack(ids))
  redis.call('HDEL', state, unpack(ids))
  if #rows == count then return '0' end
end

-- What is recorded of messages that are not pending, and of lanes.
local page = redis.call('HSCAN', state, ARGV[3], 'COUNT', count)
for i = 1, #page[2], 2 do
  local field = page[2][i]
  if field:match('^%d+%-%d+$') or field:match('^suspect:') then redis.call('HDEL', state, field) end
end
if page[1] ~= '0' then return page[1] end

redis.call('UNLINK', retry, held)
redis.call('SET', mark, reset.to)
redis.call('XGROUP', 'SETID', stream, group, reset.to, 'ENTRIESREAD', reset.read)
redis.call('HSET', state, 'era', reset.era)
redis.call('HDEL', state, 'reset', 'look', 'giving')
return ''

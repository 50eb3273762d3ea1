#!lua flags=allow-oom
-- Make what waits pending again in a group that was gone and made again (ensure.lua), a page at a time.
-- KEYS    1 stream   2 retry   3 held   4 state     (all of one group)
-- ARGV    1 group   2 how many   3 where to go on in the state ("0" = at the beginning)
-- Reply   "" if that was all, else where to go on in the state
--
-- Field `giving` of the state says where to go on: first through held, in its order, then through retry, by due
-- time, then through the state, where a cursor counts only for who was given it: another server may order a hash
-- otherwise. What is released meanwhile goes from held to retry, and so is met there; what is already pending may
-- be met twice, which changes nothing. Until the field is gone nothing is trimmed (trim.lua), and no state is
-- removed as that of a settled message (mend.lua). What is gone from the stream stays where it is, or the
-- next of its key would wait for ever; `g` in its state has turn.lua count it when it is due.
--
-- In the state are the messages that a lane of an unordered group had in hand when the group was gone, having
-- claimed them from retry (due.lua): failing, not settled, and below the mark. They wait for a retry once more.
local stream, retry, held, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, count = ARGV[1], tonumber(ARGV[2])

local at = redis.call('HGET', state, 'giving')
if not at then return '' end
local stage, place = at:match('^(%a+):(.*)$')

-- @include pad
-- @include decoded
-- @include with_field
-- @include last_delivered
-- @include milliseconds
-- @include held_member
-- @include held_parts

local function claim(id, hash)
  local claimed = redis.pcall('XCLAIM', stream, group, '0', 0, id, 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
  if claimed.err then
    if claimed.err:find('NOGROUP') then return claimed end
    return nil -- no id: a stranger's
  end
  if #claimed == 0 then
    local raw = redis.call('HGET', state, id)
    redis.call('HSET', state, id, with_field(raw, decoded(raw), 'g', '1') or cjson.encode({k = hash, a = 0, g = 1}))
  end
  return nil
end

local function go_on(next_stage, next_place)
  redis.call('HSET', state, 'giving', next_stage .. ':' .. next_place)
  return '0'
end

local function is_open(id, raw)
  if redis.call('ZSCORE', retry, id) then return false end
  local record = decoded(raw)
  local hash = record and type(record.k) == 'string' and record.k or ''
  if redis.call('ZSCORE', held, held_member(hash, pad(id))) then return false end
  return #redis.call('XPENDING', stream, group, id, id, 1) == 0
end

if stage == 'state' then
  -- What comes to the group as new needs no giving back.
  local position = last_delivered(redis.call('XINFO', 'GROUPS', stream), group)
  if not position then return redis.error_reply('NOGROUP No such consumer group') end
  position = pad(position)
  local time = redis.pcall('TIME') -- who may not ask for it can give back all the same: due at once
  local now = time.err and 0 or milliseconds(time)
  local page = redis.call('HSCAN', state, ARGV[3], 'COUNT', math.ceil(count / 2)) -- up to ten commands for each
  for i = 1, #page[2], 2 do
    local id = page[2][i]
    local padded = pad(id)
    if padded and padded <= position and is_open(id, page[2][i + 1]) then
      redis.call('ZADD', retry, 'NX', now, id)
      local failed = claim(id, '')
      if failed then return failed end
    end
  end
  if page[1] ~= '0' then return page[1] end
  redis.call('HDEL', state, 'giving')
  return ''
end

if stage ~= 'retry' then
  local from = (place and place ~= '') and '(' .. place or '-'
  local members = redis.call('ZRANGEBYLEX', held, from, '+', 'LIMIT', 0, count)
  for _, member in ipairs(members) do
    local hash, id = held_parts(member)
    local failed = hash and claim(id, hash)
    if failed then return failed end
  end
  if #members == count then return go_on('held', members[count]) end
  return go_on('retry', '')
end

-- The last of the page before, if it is still there; else all of its due time again.
local score, last = place:match('^(%S+) (.*)$')
if not tonumber(score) then score, last = nil, nil end
local rank = last and redis.call('ZRANK', retry, last)
if rank and tonumber(redis.call('ZSCORE', retry, last)) == tonumber(score) then
  rank = rank + 1
else
  rank = score and redis.call('ZCOUNT', retry, '-inf', '(' .. score) or 0
end
local rows = redis.call('ZRANGE', retry, rank, rank + count - 1, 'WITHSCORES')
for i = 1, #rows, 2 do
  local failed = claim(rows[i], '')
  if failed then return failed end
end
if #rows == 2 * count then return go_on('retry', rows[#rows] .. ' ' .. rows[#rows - 1]) end
return go_on('state', '')

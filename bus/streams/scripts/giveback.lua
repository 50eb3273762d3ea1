#!lua flags=allow-oom
-- After a lost group was made again (ensure.lua): have what waits be pending again, a page at a time.
-- KEYS    1 stream   2 retry   3 held   4 state     (all of one group)
-- ARGV    1 group   2 how many
-- Reply   1 if there is more to do, else 0
--
-- Field `giving` of the state says where to go on: first through held, in its order, then through retry, by due
-- time. What is released meanwhile goes from held to retry, and so is met there; what is already pending may be
-- met twice, which changes nothing. Until the field is gone nothing is trimmed (trim.lua). What has vanished
-- from the stream stays where it is, or the next of its key would wait for ever; `g` in its state has turn.lua
-- count it when it is due.
local stream, retry, held, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, count = ARGV[1], tonumber(ARGV[2])

local at = redis.call('HGET', state, 'giving')
if not at then return 0 end
local stage, place = at:match('^(%a+):(.*)$')

local function claim(id, hash)
  local claimed = redis.pcall('XCLAIM', stream, group, '0', 0, id, 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
  if claimed.err then
    if claimed.err:find('NOGROUP') then return claimed end
    return nil -- no id: a stranger's
  end
  if #claimed == 0 then
    local raw = redis.call('HGET', state, id)
    local read, known = pcall(cjson.decode, raw or '')
    if not read or type(known) ~= 'table' then known = {k = hash, a = 0} end
    known.g = 1
    redis.call('HSET', state, id, cjson.encode(known))
  end
  return nil
end

local function go_on(next_stage, next_place)
  redis.call('HSET', state, 'giving', next_stage .. ':' .. next_place)
  return 1
end

if stage ~= 'retry' then
  local from = (place and place ~= '') and '(' .. place or '-'
  local members = redis.call('ZRANGEBYLEX', held, from, '+', 'LIMIT', 0, count)
  for _, member in ipairs(members) do
    local hash, ms, seq = member:match('^(.*):0*(%d+)%-0*(%d+)$')
    local failed = hash and claim(ms .. '-' .. seq, hash)
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
redis.call('HDEL', state, 'giving')
return 0

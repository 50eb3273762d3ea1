-- Move messages of one partition that are due into its stream: the earliest due first, then as published.
-- KEYS    1 stream   2 delayed   3 delayed:body   4 due
--         The keys of message_ids (stream:once:<message_id>) are named by what is moved, so they cannot be
--         given before; they have the stream's hash tag, and are made of its name here.
-- ARGV    1 how many at most   2 after how many bytes it is enough   3 the partition's name in `due`
-- Reply   {moved, set aside, 1 if more is due now else 0}; nil where something is due and the stream is missing.
--
-- A message is added before it is removed here, in one script: two movers move it once, and an error
-- (an id that cannot be given, a foreign type of key) leaves it where it was.
-- What only a foreign hand (or a newer version) can have written or taken is set aside, as it is: a member
-- that is no number of ours, one without a body, a body that cannot be read. It is due never (score +inf),
-- so it stands before nothing, and is shown until somebody removes it.
-- No flags on purpose: see once.lua. When memory is full the first XADD is refused and nothing has happened.
local stream, delayed, bodies = KEYS[1], KEYS[2], KEYS[3]
local most, enough = tonumber(ARGV[1]), tonumber(ARGV[2])

-- @include milliseconds

local now = milliseconds(redis.call('TIME'))

local function parts_of(body)
  local parts, at = {}, 1
  while at <= #body do
    local _, colon, size = body:find('^(%d+):', at)
    if not colon then return nil end
    local last = colon + tonumber(size)
    if body:sub(last + 1, last + 1) ~= ',' then return nil end
    parts[#parts + 1] = body:sub(colon + 1, last)
    at = last + 2
  end
  -- The message_id or nothing, then fields and values; more than unpack can take is nobody's message.
  if #parts < 3 or #parts % 2 == 0 or #parts > 1001 then return nil end
  return parts
end

local function move(number, body)
  local parts = parts_of(body)
  if not parts then return false end
  local once = parts[1] ~= '' and stream .. ':once:' .. parts[1]
  local receipt = once and redis.pcall('GET', once) -- a foreign type of key is none of ours
  local id = redis.call('XADD', stream, 'NOMKSTREAM', '*', unpack(parts, 2))
  -- Whoever publishes under this id again gets the receipt of the message, and not of its waiting.
  if receipt == 'd' .. string.format('%.0f', tonumber(number)) then
    redis.call('SET', once, id, 'KEEPTTL')
  end
  return true
end

local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, most)
if #due > 0 and redis.call('EXISTS', stream) == 0 then return nil end

local moved, bytes, aside = 0, 0, {}
for _, number in ipairs(due) do
  if bytes >= enough then break end
  local ours = #number == 16 and number:match('^%d+$')
  local body = ours and redis.call('HGET', bodies, number)
  if body and move(number, body) then
    redis.call('ZREM', delayed, number)
    redis.call('HDEL', bodies, number)
    moved = moved + 1
  else
    aside[#aside + 1] = number
  end
  bytes = bytes + (body and #body or 0)
end
-- Only now: had it been the first write, a full memory would not have been noticed.
for _, number in ipairs(aside) do redis.call('ZADD', delayed, '+inf', number) end

local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
local following = first[2] and math.max(tonumber(first[2]), 0)
if following and following >= 2 ^ 53 then following = nil end
-- First what a full memory lets through; after that nothing is refused.
redis.pcall('ZREM', KEYS[4], ARGV[3])
if following then redis.pcall('ZADD', KEYS[4], following, ARGV[3]) end
return {moved, #aside, (following and following <= now) and 1 or 0}

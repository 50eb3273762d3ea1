-- Move messages of one partition that are due into its stream: the earliest due first, then as published.
-- KEYS    1 stream   2 delayed   3 delayed:body
--         The keys of message_ids (stream:once:<message_id>) are named by what is moved, so they cannot be
--         given before; they have the stream's hash tag, and are made of its name here.
-- ARGV    1 how many at most   2 after how many bytes it is enough
-- Reply   {moved, lost, when the next is due in ms or -1, 1 if more is due now else 0}; nil where something
--         is due and the stream is missing. Lost: there is no body, which only a foreign hand can have taken.
--
-- A message is added before it is removed here, in one script: two movers move it once, and an error
-- (an id that cannot be given, a foreign type of key) leaves it where it was. A body that cannot be read is
-- added as the field `delayed`, which no handler can read: it becomes a dead letter and stops no other.
-- No flags on purpose: see once.lua. When memory is full the first XADD is refused and nothing has happened.
local stream, delayed, bodies = KEYS[1], KEYS[2], KEYS[3]
local most, enough = tonumber(ARGV[1]), tonumber(ARGV[2])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

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
  if not parts then
    redis.call('XADD', stream, 'NOMKSTREAM', '*', 'delayed', body)
    return
  end
  local once = parts[1] ~= '' and stream .. ':once:' .. parts[1]
  local known = once and redis.call('GET', once)
  local id = redis.call('XADD', stream, 'NOMKSTREAM', '*', unpack(parts, 2))
  -- Whoever publishes under this id again gets the receipt of the message, and not of its waiting.
  if known == 'd' .. string.format('%.0f', tonumber(number)) then
    redis.call('SET', once, id, 'KEEPTTL')
  end
end

local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, most)
if #due > 0 and redis.call('EXISTS', stream) == 0 then return nil end

local moved, bytes, missing = 0, 0, {}
for _, number in ipairs(due) do
  if bytes >= enough then break end
  local body = redis.call('HGET', bodies, number)
  if body then
    move(number, body)
    redis.call('ZREM', delayed, number)
    redis.call('HDEL', bodies, number)
    moved, bytes = moved + 1, bytes + #body
  else
    missing[#missing + 1] = number
  end
end
-- Only now: had it been the first write, a full memory would not have been noticed.
for _, number in ipairs(missing) do redis.call('ZREM', delayed, number) end

local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
local following = first[2] and math.min(tonumber(first[2]), 2 ^ 53) or -1
return {moved, #missing, following, (first[2] and following <= now) and 1 or 0}

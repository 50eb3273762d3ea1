-- Keep a message until it is due, or add it now if it is.
-- KEYS    1 stream   2 delayed   3 delayed:body   4 due   5 the key of its message_id, if it has one
-- ARGV    1 "in" or "at"   2 milliseconds from now, or since 1970   3 dedupe window in seconds
--         4 the partition's name in `due`   5… field, value, …
-- Reply   {{id, 1 if it was there before else 0}}; nil where the stream is missing
--
-- The id of a message that waits is "d" and its number in the partition; it gets a stream id when it is
-- moved. The body is kept as netstrings (5:hello,): first the message_id or nothing, then the fields.
-- No flags on purpose: see once.lua. The first write (HINCRBY) is the one that a full memory refuses.
local stream, delayed, body, once = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
if redis.call('EXISTS', stream) == 0 then return nil end
redis.call('XLEN', stream) -- refuses a key of another type now, not when the message is due

local receipt = once and redis.call('GET', once)
if receipt then return {{receipt, 1}} end

-- @include milliseconds

local now = milliseconds(redis.call('TIME'))
local due = tonumber(ARGV[2])
if ARGV[1] == 'in' then due = now + due end

local id
if due <= now then
  id = redis.call('XADD', stream, 'NOMKSTREAM', '*', unpack(ARGV, 5))
else
  local number = string.format('%016.0f', redis.call('HINCRBY', body, 'last', 1))
  local message_id = once and once:match(':once:(.*)$') or ''
  local parts = {#message_id .. ':' .. message_id .. ','}
  for i = 5, #ARGV do parts[#parts + 1] = #ARGV[i] .. ':' .. ARGV[i] .. ',' end
  redis.call('HSET', body, number, table.concat(parts))
  redis.call('ZADD', delayed, due, number)
  -- A key of a foreign type there must stop no publisher: then the rare look at every partition finds it.
  redis.pcall('ZADD', KEYS[4], 'LT', due, ARGV[4])
  id = 'd' .. string.format('%.0f', tonumber(number))
end
if once then redis.call('SET', once, id, 'EX', ARGV[3]) end
return {{id, 0}}

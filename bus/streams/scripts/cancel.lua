#!lua flags=allow-oom
-- Remove messages of one partition that wait until they are due.
-- KEYS    1 stream   2 delayed   3 delayed:body     (for the keys of message_ids see move.lua)
-- ARGV    their numbers, padded as in the zset
-- Reply   for each 1 if it is removed, 0 if it was not there: it was moved or cancelled before; -1 not looked
--         at, since others before it were large: ask again
--
-- Its message_id is free again, or a later publish under it would be taken for a duplicate of a message that
-- nobody ever gets.
local stream, delayed, bodies = KEYS[1], KEYS[2], KEYS[3]

local function free(number, body)
  local size = body and body:match('^(%d+):')
  local message_id = size and body:sub(#size + 2, #size + 1 + tonumber(size)) or ''
  if message_id == '' then return end
  local once = stream .. ':once:' .. message_id
  local receipt = redis.pcall('GET', once)
  if receipt == 'd' .. string.format('%.0f', tonumber(number)) then redis.call('DEL', once) end
end

-- Bytes of bodies that are read: no script holds the server for more than 5 ms (benchmarks/scripts.py measures it).
local result, bytes, enough = {}, 0, 256 * 1024

local function cancel(number)
  local removed = redis.call('ZREM', delayed, number)
  if removed == 1 then
    local body = redis.call('HGET', bodies, number)
    bytes = bytes + (body and #body or 0)
    free(number, body)
    redis.call('HDEL', bodies, number)
  end
  return removed
end

for _, number in ipairs(ARGV) do result[#result + 1] = bytes < enough and cancel(number) or -1 end
return result

-- Store messages of one partition, each at most once within the window.
-- KEYS    1 stream   2… for each message the key of its message_id
-- ARGV    1 window in seconds   then for each message: how many values it has, field, value, …
-- Reply   for each message {id, 1 if it was there before else 0}; nil where the stream is missing
--
-- No flags on purpose (and so no shebang): the server then refuses the first XADD when memory is full, with
-- nothing written, while a message that is there already is still answered. After the first XADD nothing
-- is refused for memory any more, so the messages are stored in their order and without a gap.
local stream, window = KEYS[1], ARGV[1]
if redis.call('EXISTS', stream) == 0 then return nil end

local replies, at = {}, 2
for i = 2, #KEYS do
  local count = tonumber(ARGV[at])
  local receipt = redis.call('GET', KEYS[i])
  if receipt then
    replies[#replies + 1] = {receipt, 1}
  else
    local id = redis.call('XADD', stream, 'NOMKSTREAM', '*', unpack(ARGV, at + 1, at + count))
    redis.call('SET', KEYS[i], id, 'EX', window)
    replies[#replies + 1] = {id, 0}
  end
  at = at + 1 + count
end
return replies

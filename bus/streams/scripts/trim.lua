#!lua flags=allow-oom
-- Trim a partition's head by age, never past what a declared group has not settled.
-- KEYS[1] stream   KEYS[2…] states of the declared groups
-- ARGV[1] cutoff in ms: older messages may go   ARGV[2…] declared groups
-- Reply   how many messages were trimmed, at most about 20,000: ask again until it is none; -1 if a declared
--         group is missing, -2 if one that was lost is not given back all of it yet (nothing is trimmed then)
local stream = KEYS[1]
if redis.call('EXISTS', stream) == 0 then return 0 end

local function parts(id)
  local ms, seq = id:match('^(%d+)%-(%d+)$')
  return ms, seq
end

-- Ids are 64-bit numbers and Lua's are doubles, so they are compared as text of equal length.
local function less(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  if #a_ms ~= #b_ms then return #a_ms < #b_ms end
  if a_ms ~= b_ms then return a_ms < b_ms end
  if #a_seq ~= #b_seq then return #a_seq < #b_seq end
  return a_seq < b_seq
end

local present = {}
local floor = ARGV[1] .. '-0'
for _, raw in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local group = {}
  for i = 1, #raw, 2 do group[raw[i]] = raw[i + 1] end
  present[group['name']] = true
  -- XTRIM MINID keeps the id it is given, so the last delivered one may stay: one entry, no arithmetic.
  local first = group['last-delivered-id']
  if group['pending'] > 0 then first = redis.call('XPENDING', stream, group['name'])[2] end
  if less(first, floor) then floor = first end
end
for i = 2, #ARGV do
  if not present[ARGV[i]] then return -1 end
end
-- What waits there is not pending yet, so nothing holds it back from being trimmed (see giveback.lua).
for i = 2, #KEYS do
  if redis.call('HEXISTS', KEYS[i], 'giving') == 1 then return -2 end
end
-- Whole nodes of the stream first, some at a time; what is left in the first node after that is little.
local trimmed = redis.call('XTRIM', stream, 'MINID', '~', floor, 'LIMIT', 20000)
if trimmed == 0 then trimmed = redis.call('XTRIM', stream, 'MINID', floor) end
if trimmed > 0 then
  -- What else was removed is counted as lost, see lost.lua.
  for i = 2, #KEYS do redis.call('HINCRBY', KEYS[i], 'cut', trimmed) end
end
return trimmed

#!lua flags=allow-oom
-- Give dead letters of one partition back to their group, and to nobody else.
-- KEYS    1 stream   2 retry   3 held   4 state   5 dead   6… leases of the lanes     (all of one group)
-- ARGV    1 group   2 ordering ("key", "partition" or "none")   3 a lease value that frees a lane, never used before
--         4 how many lanes   their names, in the order of the leases   ids of the letters
-- Reply   for each letter: 1 its message waits for the group again, 2 a copy was added for this group alone,
--         0 gone (somebody was faster), -1 stays a dead letter: the stream or group is missing, the group
--         is being reset, or no copy was kept, -2 not looked at: this script has done enough, ask again
--
-- Everything is checked first, and recorded before the letter is removed. A slice may be at work on the
-- lane: what is added here breaks none of what it knows, but it must look. A lane with nothing in hand is
-- freed, so that whoever takes it reads everything anew. Under one with something in hand the lease is
-- only touched: the next turn is refused by its WATCH, and then looks for what is due.
local stream, retry, held, state, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, ordering, fresh = ARGV[1], ARGV[2], ARGV[3]
local first_letter = 5 + ARGV[4]
local about = {id = true, reason = true, error = true, attempts = true, first = true, last = true}
local page = 100
-- One letter may have as many bytes as a message; what comes after so many of them is for the next script.
local enough = 256 * 1024
-- Looks at single messages, over all lanes; a lane that is not looked at counts as one with something in hand.
local looks = 1000
-- unpack() takes just under 8,000 values.
local most_fields = 7000
ordering = redis.call('HGET', state, 'ordering') or ordering  -- the one in effect, see bus/topics/reordering.py

-- @include pad
-- @include last_delivered
-- @include milliseconds
-- @include size_of
-- @include key_hash

-- All stay what they are.
local function kept()
  local list, bytes = {}, 0
  for i = first_letter, #ARGV do
    local letter = bytes < enough and redis.call('XRANGE', dead, ARGV[i], ARGV[i])
    if letter and letter[1] then bytes = bytes + size_of(letter[1][2]) end
    list[#list + 1] = not letter and -2 or letter[1] and -1 or 0
  end
  return list
end

-- The letter's own fields stand first; the message follows, whatever its fields are called.
local function parts(fields)
  local facts, message = {}, {}
  local at = 1
  while at < #fields and about[fields[at]] and not facts[fields[at]] do
    facts[fields[at]] = fields[at + 1]
    at = at + 2
  end
  for i = at, #fields do message[#message + 1] = fields[i] end
  return facts, message
end

local groups = redis.pcall('XINFO', 'GROUPS', stream)
local position = not groups.err and last_delivered(groups, group)
if not position then return kept() end
position = pad(position)
if redis.call('HEXISTS', state, 'reset') == 1 then return kept() end

local now = milliseconds(redis.call('TIME'))

-- Before anything is added: which lanes have a message in hand, one that neither waits for a retry nor is held.
-- In ordered groups a retry that runs is still in the zset; so where one is due a slice runs or is about to.
local function in_hand(lane)
  if ordering ~= 'none' then
    local waiting_there = redis.call('ZCARD', retry) + redis.call('ZCARD', held)
    return redis.call('XPENDING', stream, group)[1] > waiting_there
      or redis.call('ZCOUNT', retry, '-inf', now + 1) > 0
  end
  if looks <= 0 then return true end
  local rows = redis.call('XPENDING', stream, group, '-', '+', page, lane)
  for _, row in ipairs(rows) do
    looks = looks - 1
    if looks < 0 or not redis.call('ZSCORE', retry, row[1]) then return true end
  end
  return #rows == page
end

local lanes = {}
for i = 6, #KEYS do
  local value = redis.call('GET', KEYS[i])
  if value and value:sub(1, 5) ~= 'free:' then
    lanes[#lanes + 1] = {KEYS[i], value, in_hand(ARGV[i - 1])}
  end
end

local result, waiting, bytes = {}, false, 0

-- `g` stands last. And a copy has six fields or more: older workers look for `g` only behind more than four,
-- and one may run beside this version.
local function for_group_alone(message)
  if message[#message - 1] == 'g' then
    message[#message] = nil
    message[#message] = nil
  end
  while #message < 4 do
    message[#message + 1] = 'h'
    message[#message + 1] = '{}'
  end
  message[#message + 1] = 'g'
  message[#message + 1] = group
  return message
end

local function stands_in_stream(id)
  if not id or not id:match('^%d+%-%d+$') then return false end
  local reply = redis.pcall('XRANGE', stream, id, id) -- an error where it is no 64-bit number
  return not reply.err and #reply == 1
end

local function redrive(letter)
  local entry = redis.call('XRANGE', dead, letter, letter)[1]
  if not entry then return 0 end
  bytes = bytes + size_of(entry[2])
  local facts, message = parts(entry[2])
  local id = facts['id']
  if stands_in_stream(id) then
    -- After a reset the group may have it again, or before it: then it is delivered without our help.
    -- What somebody else wrote may be no id to us, though the server takes it for one (leading zeros).
    local there = (pad(id) or '') > position or #redis.call('XPENDING', stream, group, id, id, 1) == 1
    if not there then
      redis.call('XCLAIM', stream, group, '0', 0, id, 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
      redis.call('HSET', state, id, cjson.encode({k = key_hash(ordering, message), a = 0}))
      redis.call('ZADD', retry, now, id)
      waiting = true
    end
    redis.call('XDEL', dead, letter)
    return 1
  end
  if #message == 0 or #message > most_fields then return -1 end
  redis.call('XADD', stream, 'NOMKSTREAM', '*', unpack(for_group_alone(message)))
  redis.call('XDEL', dead, letter)
  return 2
end

for i = first_letter, #ARGV do result[#result + 1] = bytes < enough and redrive(ARGV[i]) or -2 end

if waiting then
  for _, lane in ipairs(lanes) do
    if lane[3] then
      redis.call('SET', lane[1], lane[2])
    elseif ordering == 'none' then
      redis.call('DEL', lane[1])
    else
      redis.call('SET', lane[1], fresh)
    end
  end
end
return result

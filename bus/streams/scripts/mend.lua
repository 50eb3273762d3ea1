#!lua flags=allow-oom
-- Put right what is known of a group's waiting messages where it does not fit together: after a failover or an
-- older dump, or because somebody removed a key. One page; the stages go in this order:
--   retry   what waits for its retry is pending in this lane, has a state with its key, and is not held as well
--   held    what is held back is pending in this lane, under its own key, and not waiting for a retry as well
--   state   what is settled has no state (not while a group is given back what waits: giveback.lua)
-- KEYS    1 stream   2 lease   3 retry   4 held   5 state
-- ARGV    1 lease value   2 group   3 lane   4 ordering ("key", "partition" or "none")
--         5 stage   6 where to go on in it ("" = at the beginning)   7 how many to look at, over all stages
-- Reply   {0, lease value there}, or
--         {1, the stage to go on with ("" = that was all), where in it, how many were put right,
--          the first of each key that is held in this page, as members of held}
--
-- What the group has not been given yet (its position is older) comes to it as new: here it does not wait. What
-- waits and is not pending is made pending: rather handled once more than never.
local stream, lease, retry, held, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, lane, ordering, stage, cursor, count = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
-- Bytes of messages that are read for their keys; the rest is for the next page: no script holds the server for more
-- than 5 ms (benchmarks/scripts.py measures it).
local bytes_left = 256 * 1024

local current = redis.call('GET', lease) or ''
if current ~= ARGV[1] then return {0, current} end

local fixed = 0

-- @include pad
-- @include decoded
-- @include with_field
-- @include last_delivered
-- @include named
-- @include milliseconds
-- @include size_of
-- @include key_hash
-- @include held_member
-- @include held_parts

local position = last_delivered(redis.call('XINFO', 'GROUPS', stream), group)
if not position then return redis.error_reply('NOGROUP No such consumer group') end
position = pad(position)

local function is_pending(id, owner)
  local rows = redis.call('XPENDING', stream, group, id, id, 1)
  return #rows == 1 and (not owner or rows[1][2] == owner)
end

local function claim(id)
  if is_pending(id, ordering ~= 'none' and lane) then return end
  local claimed = redis.call('XCLAIM', stream, group, lane, 0, id, 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
  fixed = fixed + #claimed
end

-- As without a key where the message is gone.
local function hash_of(id)
  local entry = ordering == 'key' and redis.call('XRANGE', stream, id, id)[1]
  local fields = entry and entry[2] or {}
  bytes_left = bytes_left - size_of(fields)
  return key_hash(ordering, fields)
end

local function is_hash(text)
  if ordering == 'partition' then return text == '*' end
  return #text == 16 and not text:find('%X')
end

-- What a message is known to be tied to, nil if that is not known; and its state, as it is written and read.
local function known_hash(id)
  local raw = redis.call('HGET', state, id)
  local record = decoded(raw)
  return record and type(record.k) == 'string' and record.k or nil, raw, record
end

local function waiting_as(id, padded)
  return held_member(known_hash(id) or '', padded)
end

-- Due at once. Who may not ask for the time puts it right all the same: an error here would undo nothing of what
-- was written before.
local function wait_for_retry(id)
  local time = redis.pcall('TIME')
  redis.call('ZADD', retry, 'NX', time.err and 0 or milliseconds(time), id)
end

local firsts, first_of, go_on, looked = {}, {}, '', 0

local function see(hash, padded)
  local at = first_of[hash]
  if not at then
    at = {hash, padded}
    first_of[hash], firsts[#firsts + 1] = at, at
  elseif padded < at[2] then
    at[2] = padded
  end
end

local stages = {}

function stages.retry()
  -- From the latest on: what is removed leaves the ranks of those still to come as they are.
  local from = tonumber(cursor) or 0
  local ids = redis.call('ZREVRANGE', retry, from, from + count - 1)
  local kept = 0
  for _, id in ipairs(ids) do
    if bytes_left < 0 then break end
    looked = looked + 1
    local padded = pad(id)
    if padded and padded > position then
      redis.call('ZREM', retry, id)
      fixed = fixed + 1
    else
      kept = kept + 1
      if padded and ordering ~= 'none' then
        claim(id)
        local hash, raw, record = known_hash(id)
        if not hash or not is_hash(hash) then
          local right = hash_of(id)
          if hash ~= right then
            local tied = with_field(raw, record, 'k', cjson.encode(right)) or cjson.encode({k = right, a = 0})
            redis.call('HSET', state, id, tied)
            fixed = fixed + 1
          end
          hash = right
        end
        fixed = fixed + redis.call('ZREM', held, held_member(hash, padded))
      end
    end
  end
  if looked == count or looked < #ids then go_on = tostring(from + kept) end
end

function stages.held()
  local members = redis.call('ZRANGEBYLEX', held, cursor == '' and '-' or '(' .. cursor, '+', 'LIMIT', 0, count)
  local last
  for _, member in ipairs(members) do
    if bytes_left < 0 then break end
    looked, last = looked + 1, member
    local hash, id = held_parts(member)
    if hash then
      local padded, right = pad(id), hash
      if ordering == 'none' then right = '' elseif not is_hash(hash) then right = hash_of(id) end
      if padded > position or redis.call('ZSCORE', retry, id) then
        redis.call('ZREM', held, member)
        fixed = fixed + 1
      elseif right ~= hash or right == '' then
        redis.call('ZREM', held, member)
        if right == '' then wait_for_retry(id) else redis.call('ZADD', held, 0, held_member(right, padded)) end
        fixed = fixed + 1
      end
      if padded <= position then
        claim(id)
        if right ~= '' then see(right, padded) end
      end
    end
  end
  if last and (#members == count or last ~= members[#members]) then go_on = last end
end

function stages.state()
  if redis.call('HEXISTS', state, 'giving') == 1 then return end -- not all that is open is pending yet
  local newest = pad(named(redis.call('XINFO', 'STREAM', stream))['last-generated-id'])
  local page = redis.call('HSCAN', state, cursor == '' and '0' or cursor, 'COUNT', count)
  looked = #page[2] / 2
  for i = 1, #page[2], 2 do
    local id = page[2][i]
    local padded = pad(id)
    -- What waits and is gone from the stream cannot be pending: turn.lua counts it when it is due.
    local waits = padded and (redis.call('ZSCORE', retry, id) or redis.call('ZSCORE', held, waiting_as(id, padded)))
    if padded and not waits and not is_pending(id) and (padded <= position or padded > newest) then
      redis.call('HDEL', state, id)
      fixed = fixed + 1
    end
  end
  if page[1] ~= '0' then go_on = page[1] end
end

local after = {retry = 'held', held = 'state', state = ''}
repeat
  go_on, looked = '', 0
  stages[stage]()
  count = count - looked
  if go_on == '' then stage, cursor = after[stage], '' end
until go_on ~= '' or stage == '' or count <= 0 or bytes_left < 0

if fixed > 0 then redis.call('HINCRBY', state, 'mended', fixed) end
for number, first in ipairs(firsts) do firsts[number] = held_member(first[1], first[2]) end
return {1, stage, go_on, fixed, firsts}

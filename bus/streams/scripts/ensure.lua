#!lua flags=allow-oom
-- Make sure that a partition's stream exists, with the groups that are declared on it.
-- KEYS    1 stream, then for each group: mark, retry, held, state, lease of its lane "0"
-- ARGV    1 era: a token never used before
--         then for each group: its name, where it begins ("earliest", "latest", or an id after which it begins)
-- Reply   how many groups were created; the stream itself is not counted
--
-- A group is created with the right ENTRIESREAD, or its lag would be unknown or wrong for ever. One that
-- was lost is made again at its mark, below which all is settled but for what waits for a retry or is held
-- back: that is given back to it. A stream that is younger than the mark is a new one: all of it is new.
--
-- Field `era` of the state says which messages the ids stand for (see bus/inbox.py). It changes where the
-- stream is a new one. The lease is then written anew, as it is: that voids the WATCH of a slice that runs,
-- and so makes it read the era again before it fetches from the new stream.
local stream, era = KEYS[1], ARGV[1]
local chunk = 1000

local fresh = redis.call('EXISTS', stream) == 0
if fresh then
  redis.call('XGROUP', 'CREATE', stream, '__jitney__', '$', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', stream, '__jitney__')
end

local info = {}
local raw = redis.call('XINFO', 'STREAM', stream)
for i = 1, #raw, 2 do info[raw[i]] = raw[i + 1] end

local function entries_after(id)
  local count, from = 0, '(' .. id
  while true do
    local page = redis.call('XRANGE', stream, from, '+', 'COUNT', chunk)
    count = count + #page
    if #page < chunk then return count end
    from = '(' .. page[#page][1]
  end
end

local present = {}
for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  for i = 1, #group, 2 do
    if group[i] == 'name' then present[group[i + 1]] = true end
  end
end

local function parts(id)
  return id:match('^(%d+)%-(%d+)$')
end

local function less(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  if #a_ms ~= #b_ms then return #a_ms < #b_ms end
  if a_ms ~= b_ms then return a_ms < b_ms end
  if #a_seq ~= #b_seq then return #a_seq < #b_seq end
  return a_seq < b_seq
end

local function unpad(padded)
  local ms, seq = padded:match('^0*(%d+)%-0*(%d+)$')
  return ms .. '-' .. seq
end

-- What waited stays waiting: pending again, in the one lane of the partition. What is gone is counted.
local function give_back(group, retry, held, state)
  local function wait_on(id, forget)
    local claimed = redis.call('XCLAIM', stream, group, '0', 0, id, 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
    if #claimed == 0 then
      forget()
      redis.call('HDEL', state, id)
      redis.call('HINCRBY', state, 'trimmed', 1)
    end
  end
  for _, id in ipairs(redis.call('ZRANGE', retry, 0, -1)) do
    wait_on(id, function() redis.call('ZREM', retry, id) end)
  end
  for _, member in ipairs(redis.call('ZRANGE', held, 0, -1)) do
    wait_on(unpad(member:match(':(.*)$')), function() redis.call('ZREM', held, member) end)
  end
end

local function begin_era(state, lease)
  redis.call('HSET', state, 'era', era)
  local owner = redis.call('GET', lease)
  if owner then redis.call('SET', lease, owner) end
end

local created = 0
for i = 2, #ARGV, 2 do
  local group, start = ARGV[i], ARGV[i + 1]
  if not present[group] then
    local id, read
    local first = 2 + (i / 2 - 1) * 5
    local state, lease = KEYS[first + 3], KEYS[first + 4]
    local mark = redis.call('GET', KEYS[first])
    local younger = mark and less(info['last-generated-id'], mark)
    if fresh or younger or redis.call('HEXISTS', state, 'era') == 0 then begin_era(state, lease) end
    if younger then
      start = 'earliest'
      redis.call('DEL', KEYS[first])
    elseif mark then
      start = mark
    end
    if start == 'latest' then
      id, read = info['last-generated-id'], info['entries-added']
    elseif start == 'earliest' then
      id, read = '0-0', info['entries-added'] - info['length']
    else
      id, read = start, info['entries-added'] - entries_after(start)
    end
    redis.call('XGROUP', 'CREATE', stream, group, id, 'ENTRIESREAD', read)
    give_back(group, KEYS[first + 1], KEYS[first + 2], state)
    created = created + 1
  end
end
return created

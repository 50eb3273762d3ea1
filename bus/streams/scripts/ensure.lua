#!lua flags=allow-oom
-- Make sure that a partition's stream exists, with the groups that are declared on it.
-- KEYS    1 stream, then for each group: mark, retry, held, state, lease of its lane "0"
-- ARGV    1 era: a token never used before
--         then for each group: its name, where it begins ("earliest", "latest", or an id after which it begins),
--         and what was counted for it: "" or "id offset basis", see below
-- Reply   {[[name, id, basis, messages ever added], …] of groups that need a count first,
--          [name, …] of groups to which something is still to be given back (giveback.lua),
--          1 if a group was gone and is created again, else 0,
--          [name, …] of groups whose reset is not at its end (reset_rest.lua)}
--
-- A group is created with the right ENTRIESREAD, or its lag would be unknown or wrong for ever. Where that has
-- to be counted and is more than a little, whoever calls counts it in portions (count.lua): how many messages
-- were ever added up to this id. That never changes, as long as the stream is the same one: the last message
-- that was counted, the basis, must still be there.
--
-- A group that is gone is made again at its mark, below which all is settled but for what waits for a retry or
-- is held back: that is given back to it. A stream that is younger than the mark is a new one: all of it is new.
--
-- Field `era` of the state says which messages the ids stand for (see bus/transactions/inbox.py). It changes where the
-- stream is a new one. The lease is then written anew, as it is: that voids the WATCH of a slice that runs,
-- and so makes it read the era again before it fetches from the new stream.
local stream, era = KEYS[1], ARGV[1]
-- Messages, and bytes of them, that are counted here, over all groups.
local most, enough = 200, 65536

local fresh = redis.call('EXISTS', stream) == 0
if fresh then
  redis.call('XGROUP', 'CREATE', stream, '__jitney__', '$', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', stream, '__jitney__')
end

-- @include named
-- @include less
-- @include unpad
-- @include size_of

local info = named(redis.call('XINFO', 'STREAM', stream))
local present = {}
for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do present[named(group)['name']] = true end

-- How many messages were added up to this id; nil where that must be counted.
local function offset_of(id, counted)
  if not less(id, info['last-generated-id']) then return info['entries-added'] end
  if info['length'] == 0 then return info['entries-added'] end
  if less(id, info['first-entry'][1]) then return info['entries-added'] - info['length'] end
  local for_id, offset, basis = counted:match('^(%S+) (%d+) (%S+)$')
  if for_id == id and #redis.call('XRANGE', stream, basis, basis) == 1 then return tonumber(offset) end
  local page, after, from = 3, 0, '(' .. id
  while most > 0 and enough > 0 do
    local entries = redis.call('XRANGE', stream, from, '+', 'COUNT', page)
    after, most = after + #entries, most - #entries
    if #entries < page then return info['entries-added'] - after end
    from = '(' .. entries[page][1]
    for _, entry in ipairs(entries) do enough = enough - size_of(entry[2]) end
  end
  return nil
end

local function begin_era(state, lease)
  redis.call('HSET', state, 'era', era)
  redis.call('HDEL', state, 'reset')
  local owner = redis.call('GET', lease)
  if owner then redis.call('SET', lease, owner) end
end

local uncounted, giving, resetting = {}, {}, {}
local remade = 0
for i = 2, #ARGV, 3 do
  local group, start, counted = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local first = 2 + ((i + 1) / 3 - 1) * 5
  local retry, held, state, lease = KEYS[first + 1], KEYS[first + 2], KEYS[first + 3], KEYS[first + 4]
  if not present[group] then
    -- Checked before the group is made: keys of other types, and a mark that is no id.
    redis.call('ZCARD', retry)
    redis.call('ZCARD', held)
    local mark = redis.call('GET', KEYS[first])
    mark = mark and unpad(mark)
    local younger = mark and less(info['last-generated-id'], mark)
    local was_there = redis.call('HEXISTS', state, 'era') == 1
    if was_there then remade = 1 end
    if fresh or younger or not was_there then begin_era(state, lease) end
    if younger then
      start = 'earliest'
      redis.call('DEL', KEYS[first])
    elseif mark then
      start = mark
    end
    local id, read = start, nil
    if start == 'latest' then
      id, read = info['last-generated-id'], info['entries-added']
    elseif start == 'earliest' then
      id, read = '0-0', info['entries-added'] - info['length']
    else
      read = offset_of(start, counted)
    end
    if read then
      redis.call('XGROUP', 'CREATE', stream, group, id, 'ENTRIESREAD', read)
      -- One field of the state is the era; others may be of messages that were in hand.
      if redis.call('EXISTS', retry) + redis.call('EXISTS', held) > 0 or redis.call('HLEN', state) > 1 then
        redis.call('HSET', state, 'giving', 'held:')
      else
        redis.call('HDEL', state, 'giving')
      end
    else
      uncounted[#uncounted + 1] = {group, id, info['last-entry'][1], info['entries-added']}
    end
  end
  if redis.call('HEXISTS', state, 'giving') == 1 then giving[#giving + 1] = group end
  if redis.call('HEXISTS', state, 'reset') == 1 then resetting[#resetting + 1] = group end
end
return {uncounted, giving, remade, resetting}

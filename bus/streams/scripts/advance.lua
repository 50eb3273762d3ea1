#!lua flags=allow-oom
-- Move a group forward to a mark that is kept outside of Redis: the server came back with older data.
-- KEYS    1 stream   2 mark   3 retry   4 held   5 state   6… leases of the group's lanes here
-- ARGV    1 group   2 the mark: an id below which all was settled, but for what is in retry or held
-- Reply   how many messages the group will not be given again
--
-- What the older data call pending was settled later, unless it waits for a retry or is held back. A
-- verb that moves a group changes its leases, so that no slice goes on under what it knew before.
local stream, mark, retry, held = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, target = ARGV[1], ARGV[2]
if redis.call('EXISTS', stream) == 0 then return 0 end

local function less(a, b)
  local a_ms, a_seq = a:match('^(%d+)%-(%d+)$')
  local b_ms, b_seq = b:match('^(%d+)%-(%d+)$')
  if #a_ms ~= #b_ms then return #a_ms < #b_ms end
  if a_ms ~= b_ms then return a_ms < b_ms end
  if #a_seq ~= #b_seq then return #a_seq < #b_seq end
  return a_seq < b_seq
end

local info = {}
local raw = redis.call('XINFO', 'STREAM', stream)
for i = 1, #raw, 2 do info[raw[i]] = raw[i + 1] end
if less(info['last-generated-id'], target) then target = info['last-generated-id'] end

local position
for _, each in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local named = {}
  for i = 1, #each, 2 do named[each[i]] = each[i + 1] end
  if named['name'] == group then position = named['last-delivered-id'] end
end
if not position or not less(position, target) then return 0 end

local waiting = {}
for _, id in ipairs(redis.call('ZRANGE', retry, 0, -1)) do waiting[id] = true end
for _, member in ipairs(redis.call('ZRANGE', held, 0, -1)) do
  local ms, seq = member:match(':0*(%d+)%-0*(%d+)$')
  waiting[ms .. '-' .. seq] = true
end

local settled, from = 0, '-'
while true do
  local page = redis.call('XPENDING', stream, group, from, target, 1000)
  for _, row in ipairs(page) do
    if not waiting[row[1]] then
      redis.call('XACK', stream, group, row[1])
      settled = settled + 1
    end
  end
  if #page < 1000 then break end
  from = '(' .. page[#page][1]
end

local function count(from_id, to)
  local found, at = 0, '(' .. from_id
  while true do
    local page = redis.call('XRANGE', stream, at, to, 'COUNT', 1000)
    found = found + #page
    if #page < 1000 then return found end
    at = '(' .. page[#page][1]
  end
end

settled = settled + count(position, target)
redis.call('XGROUP', 'SETID', stream, group, target, 'ENTRIESREAD', info['entries-added'] - count(target, '+'))
redis.call('SET', mark, target)
for i = 6, #KEYS do
  local lease = redis.call('GET', KEYS[i])
  if lease then redis.call('SET', KEYS[i], 'free:advanced-' .. lease:gsub(':', '-')) end
end
return settled

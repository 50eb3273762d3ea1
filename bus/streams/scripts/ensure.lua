#!lua flags=allow-oom
-- Make sure that a partition's stream exists, with the groups that are declared on it.
-- KEYS[1] stream
-- ARGV    pairs: group, where it begins ("earliest", "latest", or an id after which it begins)
-- Reply   how many groups were created; the stream itself is not counted
--
-- A group is created with the right ENTRIESREAD, or its lag would be unknown or wrong for ever.
local stream = KEYS[1]
local chunk = 1000

if redis.call('EXISTS', stream) == 0 then
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

local created = 0
for i = 1, #ARGV, 2 do
  local group, start = ARGV[i], ARGV[i + 1]
  if not present[group] then
    local id, read
    if start == 'latest' then
      id, read = info['last-generated-id'], info['entries-added']
    elseif start == 'earliest' then
      id, read = '0-0', info['entries-added'] - info['length']
    else
      id, read = start, info['entries-added'] - entries_after(start)
    end
    redis.call('XGROUP', 'CREATE', stream, group, id, 'ENTRIESREAD', read)
    created = created + 1
  end
end
return created

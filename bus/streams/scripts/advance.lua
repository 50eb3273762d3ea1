#!lua flags=allow-oom
-- Move a group forward to a mark that is kept outside of Redis: the server came back with older data. In pages,
-- the last of which moves it.
-- KEYS    1 stream   2 mark   3 retry   4 held   5 state   6… leases of the group's lanes here
-- ARGV    1 group   2 the mark: an id below which all was settled, but for what is in retry or held
--         3 how many messages were ever added up to the mark
--         4 the last message that was counted for that, "" if there was none
--         5 ordering ("key", "partition" or "none")   6 where to go on among what is pending ("-" first)
--         7 how many to look at   8 the era of the mark, "" if it has none
-- Reply   {how many were settled now, where to go on, or "" if the group is at the mark, or in another era};
--         {0, "count"} if the count is of a stream that is not there any more
--
-- What the older data call pending was settled later, unless it waits for a retry or is held back. That is
-- settled first, and only then does the group move: whoever is interrupted begins again. A verb that moves a
-- group changes its leases, in each page, so that no slice goes on under what it knew before.
local stream, mark, retry, held = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, target, offset, basis, ordering = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
-- Messages, and bytes of those that are read for their keys: no script holds the server for more than 5 ms
-- (benchmarks/scripts.py measures it).
local count, enough = tonumber(ARGV[7]), 256 * 1024
if redis.call('EXISTS', stream) == 0 then return {0, ''} end
if (redis.call('HGET', KEYS[5], 'era') or '') ~= ARGV[8] then return {0, ''} end

-- @include less
-- @include pad
-- @include last_delivered
-- @include size_of
-- @include key_hash
-- @include held_member

local position = last_delivered(redis.call('XINFO', 'GROUPS', stream), group)
if not position or not less(position, target) then return {0, ''} end
local same = basis == '' and redis.call('XLEN', stream) == 0
if not same and (basis == '' or #redis.call('XRANGE', stream, basis, basis) == 0) then return {0, 'count'} end

local bytes = 0
local holds = redis.call('EXISTS', held) == 1

local function is_held(id)
  if not holds then return false end
  local entry = ordering == 'key' and redis.call('XRANGE', stream, id, id)[1]
  local fields = entry and entry[2] or {}
  bytes = bytes + size_of(fields)
  return redis.call('ZSCORE', held, held_member(key_hash(ordering, fields), pad(id)))
end

for i = 6, #KEYS do
  local lease = redis.call('GET', KEYS[i])
  if lease and lease:sub(1, 5) ~= 'free:' then
    redis.call('SET', KEYS[i], 'free:advanced-' .. lease:gsub(':', '-'))
  end
end

local settled, last = {}, nil
local page = redis.call('XPENDING', stream, group, ARGV[6], target, count)
for _, row in ipairs(page) do
  if bytes >= enough then break end
  last = row[1]
  if not redis.call('ZSCORE', retry, last) and not is_held(last) then settled[#settled + 1] = last end
end
if #settled > 0 then
  redis.call('XACK', stream, group, unpack(settled))
  redis.call('HDEL', KEYS[5], unpack(settled)) -- what has a state counts as open when a group is gone (giveback.lua)
end
if last and (#page == count or last ~= page[#page][1]) then return {#settled, '(' .. last} end

redis.call('XGROUP', 'SETID', stream, group, target, 'ENTRIESREAD', offset)
redis.call('SET', mark, target)
return {#settled, ''}

#!lua flags=allow-oom
-- Count what somebody removed from a partition before groups were given it, each message once.
-- KEYS    1 stream, then the state of each group
-- ARGV    1 id of the server's run; "*" if the server keeps entries-read right over restarts; "?" if the
--           caller does not know: then it is as at the last look, and without one nothing is done
--         then the name of each group
-- Reply   flat, for each group that lost something now: its name, how many, how many more at most
--
-- Of all that was ever added a group was given `entries-read`; the rest is ahead of it, or was removed:
-- lost = entries-added - entries-read - ahead. What is counted goes into entries-read, so it counts once.
-- Servers differ where a group reads on behind a gap before anybody looks. Redis before 7.4 adds one, so that
-- the formula finds the gap later; but not where XDEL removed something ahead: there it forgets entries-read, and
-- at the end of the stream takes all as read. Others put entries-read right. Then only a limit is left: what was
-- removed since the last look, and not by retention (`cut`), ahead of where the group was.
--
-- In the state: `lost`, `lost_maybe`; `lost_last`, JSON: n at most, of which so many only maybe, between which
-- ids, at (ms); `look`, JSON: what was seen last, with the run of the server in which entries-read was right.
local stream, run = KEYS[1], ARGV[1]
-- Entries that are counted in one call, over all groups, and after how many bytes of them it is enough.
local most, enough = 2000, 256 * 1024

if redis.call('EXISTS', stream) == 0 then return {} end

-- @include named
-- @include less
-- @include decoded
-- @include size_of
-- @include milliseconds

local info = named(redis.call('XINFO', 'STREAM', stream))
local added, length, last = info['entries-added'], info['length'], info['last-generated-id']
local gone, deleted = added - length, info['max-deleted-entry-id']
local first = length > 0 and info['first-entry'][1]

local groups = {}
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local group = named(flat)
  groups[group['name']] = group
end

-- How many messages lie ahead of a position; nil if it would take too long to count them.
local function ahead(position)
  if not first or not less(position, last) then return 0 end
  if less(position, first) then return length end
  if position == first then return length - 1 end
  local counted, from = 0, '(' .. position
  while most > 0 and enough > 0 do
    local page = redis.call('XRANGE', stream, from, '+', 'COUNT', 3) -- few: any of them may be large
    counted, most = counted + #page, most - #page
    if #page < 3 then return counted end
    for _, entry in ipairs(page) do enough = enough - size_of(entry[2]) end
    from = '(' .. page[3][1]
  end
end

-- The last look, if it was of this stream and this group.
local function looked(raw, era)
  local look = decoded(raw)
  if not look or look.era ~= era then return nil end
  for _, name in ipairs({'read', 'added', 'gone', 'cut'}) do
    if type(look[name]) ~= 'number' then return nil end -- none of ours
  end
  if look.added <= added and tostring(look.position):match('^%d+%-%d+$') then return look end
end

-- Only an upper limit is known of what a group, now at offset `read`, has jumped over since the last look.
local function limit(look, cut, read, lost)
  local removed = gone - look.gone - (cut - look.cut) - lost
  if deleted == look.deleted then removed = math.min(removed, math.min(gone, read) - look.read) end
  return math.max(0, removed)
end

local function count(name, group, state)
  local raw, era, cut = unpack(redis.call('HMGET', state, 'look', 'era', 'cut'))
  era, cut = era or '', tonumber(cut or '') or 0
  if not (cut >= 0 and cut < 2 ^ 53) then cut = 0 end -- somebody has overwritten it
  local look = looked(raw, era)
  local by = run
  if run == '?' then
    if not look then return 0, 0 end
    by = look.run
  end
  local position, read = group['last-delivered-id'], group['entries-read'] or nil
  local here = look and look.position == position
  local behind, tombs = ahead(position), less(position, deleted)
  if by ~= '*' and not (look and look.run == by) then read = nil end -- of another run of an old server
  if here and not read then read = look.read end
  if not behind and (by ~= '*' or tombs or not read) then return 0, 0 end -- once it is nearer to the end

  local lost, maybe = 0, 0
  if read and behind then lost = math.max(0, added - read - behind) end
  local forgets = by == '*' or not read or (look and less(look.position, deleted))
  if look and not here and forgets then maybe = limit(look, cut, read or added, lost) end

  local right = behind and added - behind or read
  if right ~= group['entries-read'] then
    redis.call('XGROUP', 'SETID', stream, name, position, 'ENTRIESREAD', right)
  end
  if lost + maybe > 0 then
    local after, before = position, first or last
    if not first or not less(position, first) then
      if lost > 0 and tombs then before = deleted elseif first then after, before = look.position, position end
    end
    local time = redis.pcall('TIME')
    if not time.err then -- who may not ask for it counts all the same: entries-read is right by now
      local last_loss = {n = lost + maybe, maybe = maybe, after = after, before = before, at = milliseconds(time)}
      redis.call('HSET', state, 'lost_last', cjson.encode(last_loss))
    end
    redis.pcall('HINCRBY', state, 'lost', lost) -- unless somebody has overwritten it
    redis.pcall('HINCRBY', state, 'lost_maybe', maybe)
  end
  local now = string.format(
    '{"era":%s,"run":%s,"position":"%s","deleted":"%s","read":%d,"added":%d,"gone":%d,"cut":%d}',
    cjson.encode(era), cjson.encode(by), position, deleted, right, added, gone, cut)
  if now ~= raw then redis.call('HSET', state, 'look', now) end
  return lost, maybe
end

local losses = {}
for i = 2, #ARGV do
  local group = groups[ARGV[i]]
  if group then
    local lost, maybe = count(ARGV[i], group, KEYS[i])
    if lost + maybe > 0 then
      losses[#losses + 1] = ARGV[i]
      losses[#losses + 1] = lost
      losses[#losses + 1] = maybe
    end
  end
end
return losses

#!lua flags=allow-oom
-- Trim a partition's head by age, never past what a declared group has not settled.
-- KEYS    1 stream   2 ahead   3… states of the declared groups
-- ARGV    1 now, by the server's clock   2 older messages may go   3 how far apart looks are noted   (all ms)
--         4… declared groups
-- Reply   {how many messages were trimmed, at most about 20,000: ask again until it is none; -1 if a declared
--          group is missing, -2 if one that was gone is not given back all of it yet, or a reset is not at its
--          end (nothing is trimmed then),
--          by how many ms ids are ahead of the clock, or 0}
--
-- An id is the time of its message, unless ids are ahead of the clock: it has been set back, or somebody gave an
-- id of his own; the server then only counts on from the last one. Messages are then kept by when they were
-- seen: now and then the last id is noted under the time of that look, and what was there by then is as old.
local stream, ahead = KEYS[1], KEYS[2]
local now, cutoff, apart = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tolerance = 60000
-- Messages that go at once, the first of which says how large they are, more or less; and how many bytes in all.
local at_once, enough = 200, 16 * 1024 * 1024
if redis.call('EXISTS', stream) == 0 then return {0, 0} end

-- @include less
-- @include pad
-- @include named
-- @include size_of

local present, newest, unsettled = {}, nil, nil
for _, raw in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local group = named(raw)
  present[group['name']] = true
  local last = group['last-delivered-id']
  if not newest or less(newest, last) then newest = last end
  -- XTRIM MINID keeps the id it is given, so the last delivered one may stay: one entry, no arithmetic.
  local first = last
  if group['pending'] > 0 then first = redis.call('XPENDING', stream, group['name'])[2] end
  if not unsettled or less(first, unsettled) then unsettled = first end
end
for i = 4, #ARGV do
  if not present[ARGV[i]] then return {-1, 0} end
end
-- What waits there is not pending yet, so nothing holds it back from being trimmed (see giveback.lua); nor what a
-- reset leads back to (reset.lua).
for i = 3, #KEYS do
  if redis.call('HEXISTS', KEYS[i], 'giving') + redis.call('HEXISTS', KEYS[i], 'reset') > 0 then return {-2, 0} end
end
if not newest then
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if not last then return {0, 0} end
  newest = last[1]
end

-- The last id that was noted long enough ago; notes that it makes needless go.
local function seen_before()
  local best, best_at, latest = nil, nil, nil
  local notes = redis.call('HGETALL', ahead)
  for i = 1, #notes, 2 do
    local at, id = tonumber(notes[i]), notes[i + 1]
    if not at or at ~= at or not pad(id) or less(newest, id) or at > now then
      redis.call('HDEL', ahead, notes[i]) -- none of ours, or of a stream that was there before this one
    else
      if not latest or at > latest then latest = at end
      if at <= cutoff and (not best_at or at > best_at) then best, best_at = id, at end
    end
  end
  for i = 1, #notes, 2 do
    local at = tonumber(notes[i])
    if at and best_at and at < best_at then redis.call('HDEL', ahead, notes[i]) end
  end
  if not latest or now - latest >= apart then redis.call('HSET', ahead, string.format('%.0f', now), newest) end
  return best
end

local floor, by = string.format('%.0f', cutoff) .. '-0', 0
local newest_ms = tonumber(newest:match('^(%d+)'))
if newest_ms > now + tolerance then
  by = math.min(newest_ms - now, 2 ^ 53)
  local seen = seen_before()
  if seen and less(floor, seen) then floor = seen end
end
if unsettled and less(unsettled, floor) then floor = unsettled end
-- Whole nodes of the stream first, some at a time; what is left in the first node after that is little.
local trimmed, bytes = 0, 0
while trimmed < 20000 and bytes < enough do
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  local some = redis.call('XTRIM', stream, 'MINID', '~', floor, 'LIMIT', at_once)
  if some == 0 then break end
  bytes = bytes + size_of(first[2]) * some
  trimmed = trimmed + some
end
-- Nodes may be made larger than that (stream-node-max-entries).
if trimmed == 0 then trimmed = redis.call('XTRIM', stream, 'MINID', '~', floor, 'LIMIT', 20000) end
if trimmed == 0 then trimmed = redis.call('XTRIM', stream, 'MINID', floor) end
if trimmed > 0 then
  -- What else was removed is counted as lost, see lost.lua. (Not in a state that somebody has overwritten.)
  for i = 3, #KEYS do redis.pcall('HINCRBY', KEYS[i], 'cut', trimmed) end
end
return {trimmed, by}

#!lua flags=allow-oom
-- Compare-and-set of a lease.
-- KEYS[1] lease   KEYS[2] stream   KEYS[3] state of the group   KEYS[4] retry   KEYS[5] held
-- ARGV[1] the value that must be there ("" = none)   ARGV[2] the new value ("" = remove)
-- ARGV[3] group   ARGV[4] lane
-- ARGV[5] "1" when the lease is taken without having been released: what is pending then may
--         have killed its worker, so it is suspect up to the last id that was given out
-- ARGV[6] the ordering under which a lane is taken: refused where another is in effect; "" for one that we have.
--         Its consumer name is made too. So each lease of a lane has a name in its group, by which it is found
--         when its worker is gone, and none is there without its group
-- Reply   {1, new value}, {0, the value that is there}, or {2, ""} where there is no such group, or it
--         is being reset (reset.lua): either is put right first, by whoever makes the partition (ensure.lua). Where
--         a lane is taken {1, new value, position}: of the group, if the lane is surely at rest (nothing is pending or
--         waits, and the group was given all there is), else ""
--
-- A key of another type is somebody else's doing, and as good as none: whoever works there tells of it.
local current = redis.pcall('GET', KEYS[1]) or ''
if type(current) == 'table' then current = '' end
if current ~= ARGV[1] then return {0, current} end
if ARGV[6] and ARGV[6] ~= '' then
  local effect = redis.pcall('HGET', KEYS[3], 'ordering')
  if type(effect) == 'string' and effect ~= ARGV[6] then return {0, current} end
  if redis.pcall('HEXISTS', KEYS[3], 'reset') == 1 then return {2, ''} end
  local made = redis.pcall('XGROUP', 'CREATECONSUMER', KEYS[2], ARGV[3], ARGV[4])
  if type(made) == 'table' then
    local err = made.err
    local missing = err:find('NOGROUP', 1, true) or err:find('WRONGTYPE', 1, true) or err:find('key to exist', 1, true)
    if not missing then return made end -- such as a refusal by access rules: not to be taken for a group that is gone
    return {2, ''}
  end
  if not effect then redis.call('HSET', KEYS[3], 'ordering', ARGV[6]) end
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2])
end
if ARGV[5] == '1' then
  local pending = redis.pcall('XPENDING', KEYS[2], ARGV[3])
  if not pending.err and pending[1] > 0 then
    redis.pcall('HSET', KEYS[3], 'suspect:' .. ARGV[4], pending[3])
  end
end

-- @include last_delivered
-- @include named

local function at_rest()
  local pending = redis.pcall('XPENDING', KEYS[2], ARGV[3])
  if pending.err or pending[1] > 0 then return '' end
  local retry, held, state = redis.pcall('ZCARD', KEYS[4]), redis.pcall('ZCARD', KEYS[5]), redis.pcall('HLEN', KEYS[3])
  if retry ~= 0 or held ~= 0 or type(state) == 'table' then return '' end
  local position = last_delivered(redis.call('XINFO', 'GROUPS', KEYS[2]), ARGV[3])
  -- XINFO STREAM brings the first and the last message along, so it is asked only where there are none.
  local newest
  if redis.call('XLEN', KEYS[2]) > 0 then
    newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1][1]
  else
    newest = named(redis.call('XINFO', 'STREAM', KEYS[2]))['last-generated-id']
  end
  return position == newest and position or ''
end

if ARGV[6] and ARGV[6] ~= '' then return {1, ARGV[2], at_rest()} end
return {1, ARGV[2]}

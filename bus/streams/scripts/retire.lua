#!lua flags=allow-oom
-- Remove a lane (a consumer name) that has nothing pending. XGROUP DELCONSUMER would lose what is.
-- KEYS    1 stream   2 lease
-- ARGV    1 lease value ("" = none)   2 group   3 lane
-- Reply   1 removed, 0 the lease is not ours or something is pending there
--
-- Where there is no such group, its pending lists are gone with it: what is left of the lane is its lease.
-- A lease of another type is somebody else's doing, and as good as none.
local current = redis.pcall('GET', KEYS[2]) or ''
if type(current) == 'table' then current = '' end
if current ~= ARGV[1] then return 0 end
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[2], '-', '+', 1, ARGV[3])
if not pending.err then
  if #pending > 0 then return 0 end
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[2], ARGV[3])
end
redis.call('DEL', KEYS[2])
return 1

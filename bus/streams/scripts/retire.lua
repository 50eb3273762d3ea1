#!lua flags=allow-oom
-- Remove a lane (a consumer name) that has nothing pending. XGROUP DELCONSUMER would lose what is.
-- KEYS    1 stream   2 lease
-- ARGV    1 lease value   2 group   3 lane
-- Reply   1 removed, 0 the lease is not ours or something is pending there
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then return 0 end
if #redis.call('XPENDING', KEYS[1], ARGV[2], '-', '+', 1, ARGV[3]) > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[2], ARGV[3])
redis.call('DEL', KEYS[2])
return 1

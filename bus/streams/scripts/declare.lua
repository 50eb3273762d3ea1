#!lua flags=allow-oom
-- Write what is declared (of a topic, a group, the layout), also while memory is full: operators must be able
-- to shorten a retention or resume a group just then.
-- KEYS[1] hash   ARGV[1] field   ARGV[2] value   ARGV[3] "1" to leave what is there
-- Reply   1 if it was written, 0 if it was there already (with "1")
if ARGV[3] == '1' then return redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1

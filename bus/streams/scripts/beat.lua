#!lua flags=allow-oom
-- Raise a worker's beat and see everybody's.
-- KEYS[1] workers   ARGV[1] incarnation   ARGV[2] what is known of it, with the counter, as JSON
-- Reply   the whole table: incarnation, JSON, incarnation, JSON, …
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return redis.call('HGETALL', KEYS[1])

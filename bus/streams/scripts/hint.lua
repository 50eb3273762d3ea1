#!lua flags=allow-oom
-- Wake every watcher, also while memory is full: what an operator does then should reach workers at once.
-- KEYS[1] control   ARGV[1] what has happened
-- Reply   the id of the hint. About 100 are kept, so that this never needs more memory for long.
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', 100, '*', 'hint', ARGV[1])

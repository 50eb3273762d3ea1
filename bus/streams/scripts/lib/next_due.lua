-- When the first retry is due, in milliseconds that are exact; -1 where none waits.
local function next_due(retry)
  local score = redis.call('ZRANGE', retry, 0, 0, 'WITHSCORES')[2]
  return score and math.floor(math.max(0, math.min(tonumber(score), 2 ^ 53))) or -1
end

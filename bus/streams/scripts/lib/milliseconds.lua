-- Milliseconds since 1970, by the reply to TIME.
local function milliseconds(time)
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

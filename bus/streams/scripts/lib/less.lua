-- Whether one id stands before another, both as Redis writes them. Their parts are 64-bit numbers and Lua's numbers are
-- doubles, so they are compared as text: the shorter is the smaller.
local function less(a, b)
  local a_ms, a_seq = a:match('^(%d+)%-(%d+)$')
  local b_ms, b_seq = b:match('^(%d+)%-(%d+)$')
  if #a_ms ~= #b_ms then return #a_ms < #b_ms end
  if a_ms ~= b_ms then return a_ms < b_ms end
  if #a_seq ~= #b_seq then return #a_seq < #b_seq end
  return a_seq < b_seq
end

-- An id with both parts of 20 digits, as many as 64 bits need: then text sorts as ids do. nil for what is no id, which
-- only somebody else can have put there.
local function pad(id)
  local ms, seq = id:match('^(%d+)%-(%d+)$')
  if not ms or #ms > 20 or #seq > 20 then return nil end
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
end

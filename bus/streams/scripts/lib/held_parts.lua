-- The key hash and the id in a member of held; nil for what has none, which only somebody else can have put there.
local function held_parts(member)
  local hash, ms, seq = member:match('^(.*):0*(%d+)%-0*(%d+)$')
  if not hash or #ms > 20 or #seq > 20 then return nil end
  return hash, ms .. '-' .. seq
end

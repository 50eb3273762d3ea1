-- The member of held for a message that waits: its key hash, and its id as pad makes it.
local function held_member(hash, padded)
  return hash .. ':' .. padded
end

-- An id as Redis writes it, padded or not before. nil for what is no id, which only somebody else can have put there.
local function unpad(id)
  local ms, seq = id:match('^0*(%d+)%-0*(%d+)$')
  return ms and #ms <= 20 and #seq <= 20 and ms .. '-' .. seq or nil
end

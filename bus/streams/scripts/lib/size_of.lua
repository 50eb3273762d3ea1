-- The bytes of a message: of the names and values of its fields.
local function size_of(fields)
  local bytes = 0
  for i = 1, #fields do bytes = bytes + #fields[i] end
  return bytes
end

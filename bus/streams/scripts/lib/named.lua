-- The table in a flat reply of names and values, such as that of XINFO STREAM.
local function named(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

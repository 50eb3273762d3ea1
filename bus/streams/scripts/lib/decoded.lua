-- The table that a JSON text holds, such as what is known of a message. nil where the text is missing or holds none.
local function decoded(raw)
  if not raw then return nil end
  local read, value = pcall(cjson.decode, raw)
  return read and type(value) == 'table' and value or nil
end

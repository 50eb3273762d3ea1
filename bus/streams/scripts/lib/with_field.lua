-- The text of a JSON object with one field set: where it stands, else before all others. What else is in it stays as it is
-- written, which a newer version may have added: cjson would turn [] into {} and round large numbers. `json` is the value as
-- JSON. nil where the text holds no object. Include `decoded` before.
local function with_field(raw, name, json)
  local open = decoded(raw) and raw:match('^%s*{()')
  if not open then return nil end

  local function after_string(at) -- `at` its opening quote
    repeat
      at = raw:find('["\\]', at + 1)
      local is_end = raw:sub(at, at) == '"'
      if not is_end then at = at + 1 end -- what is escaped
    until is_end
    return at + 1
  end

  local function after_value(at)
    local depth = 0
    while true do
      at = raw:find('["%[%]{},]', at)
      local sign = raw:sub(at, at)
      if sign == '"' then
        at = after_string(at)
      else
        if depth == 0 and sign:find('[%]},]') then return at end
        if sign:find('[%[{]') then depth = depth + 1 elseif sign ~= ',' then depth = depth - 1 end
        at = at + 1
      end
    end
  end

  local from, to -- of its value; of fields with one name the last counts
  local at = raw:match('^%s*()', open)
  local empty = raw:sub(at, at) == '}'
  while raw:sub(at, at) == '"' do
    local colon = after_string(at)
    local value = raw:match('^%s*:%s*()', colon)
    local is_it = cjson.decode('[' .. raw:sub(at, colon - 1) .. ']')[1] == name
    local stop = after_value(value)
    if is_it then from, to = value, stop end
    at = raw:match('^,?%s*()', stop)
  end
  if from then return raw:sub(1, from - 1) .. json .. raw:sub(to) end
  return raw:sub(1, open - 1) .. cjson.encode(name) .. ':' .. json .. (empty and '' or ',') .. raw:sub(open)
end

-- The text of a JSON object with one field set: where it stands, else before all others. What else is in it stays as it is
-- written, which a newer version may have added: cjson would turn [] into {} and round large numbers. `record` is what the
-- text says, as `decoded` reads it, and `json` the value as JSON. nil where the text holds no object.
local function with_field(raw, record, name, json)
  local open = record and raw:match('^%s*{()')
  if not open then return nil end
  if record[name] == nil then
    local rest = raw:sub(open)
    return raw:sub(1, open - 1) .. cjson.encode(name) .. ':' .. json .. (rest:find('^%s*}') and '' or ',') .. rest
  end

  -- From its opening quote. Errors are long, and full of escapes: this looks at quotes alone.
  local function after_string(at)
    repeat
      at = raw:find('"', at + 1, true)
      local escape = at
      while raw:byte(escape - 1) == 92 do escape = escape - 1 end
    until (at - escape) % 2 == 0
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
  while raw:sub(at, at) == '"' do
    local colon = after_string(at)
    local value = raw:match('^%s*:%s*()', colon)
    local text, stop = raw:sub(at + 1, colon - 2), after_value(value)
    if text:find('\\', 1, true) then text = cjson.decode('["' .. text .. '"]')[1] end
    if text == name then from, to = value, stop end
    -- What follows is an error mostly, so it is not read where the name cannot be in it once more.
    if from and not raw:find('"' .. name .. '"', stop, true) and not raw:find('\\u', stop, true) then break end
    at = raw:match('^,?%s*()', stop)
  end
  return raw:sub(1, from - 1) .. json .. raw:sub(to)
end

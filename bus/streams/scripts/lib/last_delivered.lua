-- The last id that a group was given, by the reply to XINFO GROUPS; nil where there is no such group.
local function last_delivered(groups, name)
  for _, flat in ipairs(groups) do
    local known = {}
    for i = 1, #flat, 2 do known[flat[i]] = flat[i + 1] end
    if known['name'] == name then return known['last-delivered-id'] end
  end
  return nil
end

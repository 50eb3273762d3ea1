-- The last id that a group was given, by the reply to XINFO GROUPS; nil where there is no such group.
local function last_delivered(groups, name)
  for _, flat in ipairs(groups) do
    local row = {}
    for i = 1, #flat, 2 do row[flat[i]] = flat[i + 1] end
    if row['name'] == name then return row['last-delivered-id'] end
  end
  return nil
end

-- What ties a message to others of its group, in order: equal for messages of one key, "" ties to nothing. The same as
-- key_hash in bus/format/partition.py; of several fields `k`, which only somebody else can have written, the last counts.
local function key_hash(ordering, fields)
  if ordering == 'none' then return '' end
  if ordering == 'partition' then return '*' end
  local key
  for i = 1, #fields, 2 do
    if fields[i] == 'k' then key = fields[i + 1] end
  end
  return key and redis.sha1hex(key):sub(1, 16) or ''
end

-- The ledger's one write.

-- Adds a row: {day, hour, key, provider, row, add, cost, seconds}.
local function add_entry(entry)
  local usage = prefix .. ':usage:' .. entry.day .. ':' .. entry.key
  for index = 1, #entry.add, 2 do
    raise(usage, entry.add[index] .. entry.row, entry.add[index + 1])
  end
  if entry.seconds then redis.call('HINCRBYFLOAT', usage, 's' .. entry.row, entry.seconds) end
  redis.call('SADD', prefix .. ':keys', entry.key)
  redis.call('ZADD', prefix .. ':days:' .. entry.key, entry.day, entry.day)
  if entry.cost ~= '0' then
    redis.call('ZADD', prefix .. ':days', entry.day, entry.day)
    for _, source in ipairs({'key:' .. entry.key, 'provider:' .. entry.provider}) do
      raise(prefix .. ':cost:' .. entry.day, source, entry.cost)
      for _, name in ipairs(redis.call('SMEMBERS', prefix .. ':budgets:' .. source)) do
        local subject = prefix .. ':subject:' .. name
        local period = redis.call('HGET', subject, 'period')
        if period and tonumber(period) <= entry.hour * 3600 then
          raise(subject, 'spent', entry.cost)
        end
      end
    end
  end
end

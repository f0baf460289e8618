-- The ledger's one write.

-- What one of the last requests has used. Two of the oldest make room for it.
local function add_recent(recent)
  redis.call('SET', prefix .. ':recent:' .. recent.name, recent.used, 'EX', recent.kept)
  local all = prefix .. ':recent'
  redis.call('ZADD', all, recent.at, recent.name)
  local oldest = redis.call('ZRANGE', all, 0, 1, 'WITHSCORES')
  for index = 1, #oldest, 2 do
    local old = tonumber(oldest[index + 1]) < recent.at - recent.kept
    if old or redis.call('ZCARD', all) > recent.most then
      redis.call('ZREM', all, oldest[index])
      redis.call('DEL', prefix .. ':recent:' .. oldest[index])
    end
  end
end

-- Adds a row: {day, hour, key, provider, row, add, cost, seconds, recent}.
local function add_entry(entry)
  if entry.recent then add_recent(entry.recent) end
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

-- Ends a lease, adds a row to the ledger, or both at once:
-- {worker, number, low, lease: {worker, id, tokens, shares}, entry: {day, hour, key, provider, row,
-- add, cost}}. A `number` that was written already does nothing; those below `low` are not repeated.
local done = prefix .. ':done:' .. request.worker
if redis.call('ZADD', done, 'NX', request.number, request.number) == 0 then return '{}' end
redis.call('ZREMRANGEBYSCORE', done, '-inf', '(' .. request.low)
redis.call('EXPIRE', done, 86400)

local lease = request.lease
if lease then
  local leases = prefix .. ':leases:' .. lease.worker
  local known = redis.call('HGET', leases, lease.id)
  if known then
    redis.call('HDEL', leases, lease.id)
    known = cjson.decode(known)
    give_back(known, known.s, lease.tokens - known.t)
  else
    -- Another worker took this one for dead and ended it.
    for _, share in ipairs(lease.shares) do
      correct(prefix .. ':subject:' .. share[1], share[2], lease.tokens)
    end
  end
end

local entry = request.entry
if entry then
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
return '{}'

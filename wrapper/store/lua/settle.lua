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

if request.entry then add_entry(request.entry) end
return '{}'

-- Reserves a demand: {worker, beat, id, tokens, cost, subjects}.
if sources_missing() then return cjson.encode({sources = true}) end
local leases = prefix .. ':leases:' .. request.worker
if request.beat then renew(request.worker) end
local known = redis.call('HGET', leases, request.id)
if known then
  -- The caller's connection broke after it was reserved, and it asks again.
  local lease, accounts = cjson.decode(known), {}
  for index, subject in ipairs(request.subjects) do accounts[index] = account(subject) end
  return cjson.encode({
    second = lease.s[1][2], cost = lease.c, violations = {}, standings = standings(accounts),
  })
end
local result, shares = reserve()
if shares then
  local lease = {t = request.tokens, c = request.cost, s = shares}
  redis.call('HSET', leases, request.id, cjson.encode(lease))
end
return cjson.encode(result)

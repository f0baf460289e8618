-- Gives back a lease's share of one subject and reserves it in another: {worker, id, old, subjects},
-- where `old` is '' for none and `subjects` has at most one.
local leases = prefix .. ':leases:' .. request.worker
local known = redis.call('HGET', leases, request.id)
if not known then return cjson.encode({gone = true}) end
if sources_missing() then return cjson.encode({sources = true}) end
local lease = cjson.decode(known)
request.tokens, request.cost = lease.t, lease.c
for _, share in ipairs(lease.s) do
  if request.subjects[1] and share[1] == request.subjects[1].name then
    return repeated(lease)
  end
end
local result, shares = reserve()
if not shares then return cjson.encode(result) end
for _, share in ipairs(lease.s) do
  if share[1] == request.old then
    give_back(lease, {share}, -lease.t)
  else
    shares[#shares + 1] = share
  end
end
lease.s = shares
redis.call('HSET', leases, request.id, cjson.encode(lease))
return cjson.encode(result)

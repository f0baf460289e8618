-- Reserves a demand: {worker, beat, id, tokens, cost, subjects}.
if sources_missing() then return cjson.encode({sources = true}) end
local leases = prefix .. ':leases:' .. request.worker
if request.beat then
  renew(request.worker)
else
  redis.call('ZADD', prefix .. ':workers', 'NX', now, request.worker)
end
local known = redis.call('HGET', leases, request.id)
if known then return repeated(cjson.decode(known)) end
local result, shares = reserve()
if shares then
  local lease = {t = request.tokens, c = request.cost, s = shares}
  redis.call('HSET', leases, request.id, cjson.encode(lease))
end
return cjson.encode(result)

-- Deferred work (store.deferred); `what` says which step it is:
--
--   remember {name, record, delay, cost, subjects, lease: {worker, id}, kept}
--   book     {name, token, entries, kept}: {booked}; a `token` that has booked may ask again
--   take     {gap, longest, first}: {name, record}
--   hasten   {name}
local records, due = prefix .. ':deferred', prefix .. ':due'
local result = {}

local function booked_key() return prefix .. ':booked:' .. request.name end

if request.what == 'remember' then
  if redis.call('EXISTS', booked_key()) == 0 and redis.call('HEXISTS', records, request.name) == 0 then
    local held = {text = request.record, cost = request.cost, subjects = request.subjects, asks = 0}
    if request.lease and request.cost ~= '0' then
      local leases = prefix .. ':leases:' .. request.lease.worker
      local known = redis.call('HGET', leases, request.lease.id)
      if known then
        known = cjson.decode(known)
        held.cost, known.c = known.c, '0'
        held.subjects = {}
        for index, share in ipairs(known.s) do held.subjects[index] = share[1] end
        redis.call('HSET', leases, request.lease.id, cjson.encode(known))
      else  -- it was ended by another worker, or before this could be written
        for _, name in ipairs(request.subjects) do
          raise(prefix .. ':subject:' .. name, 'reserved', request.cost)
        end
      end
    end
    redis.call('HSET', records, request.name, cjson.encode(held))
    redis.call('ZADD', due, now + request.delay, request.name)
  end

elseif request.what == 'book' then
  local known = redis.call('HGET', records, request.name)
  if known then
    known = cjson.decode(known)
    redis.call('HDEL', records, request.name)
    redis.call('ZREM', due, request.name)
    redis.call('SET', booked_key(), request.token, 'EX', request.kept)
    for _, entry in ipairs(request.entries) do add_entry(entry) end
    for _, name in ipairs(known.cost ~= '0' and known.subjects or {}) do
      lower(prefix .. ':subject:' .. name, 'reserved', '-' .. known.cost)
    end
    result.booked = true
  else
    result.booked = redis.call('GET', booked_key()) == request.token
  end

elseif request.what == 'take' then
  local asked = tonumber(redis.call('GET', prefix .. ':asked') or '0')
  local first = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 1)[1]
  if first and (now < asked or now >= asked + request.gap) then
    redis.call('SET', prefix .. ':asked', now)
    local known = redis.call('HGET', records, first)
    if known then
      known = cjson.decode(known)
      result = {name = first, record = known.text, asks = known.asks}
      known.asks = known.asks + 1
      redis.call('HSET', records, first, cjson.encode(known))
      local pause = math.min(request.first * 2 ^ math.min(known.asks, 40), request.longest)
      redis.call('ZADD', due, now + pause, first)
    else
      redis.call('ZREM', due, first)
    end
  end

elseif request.what == 'hasten' then
  redis.call('ZADD', due, 'XX', now, request.name)
end
return cjson.encode(result)

-- Leases: reserved as a whole, and given back as a whole.

-- Corrects the tokens of a bucket that still counts.
local function correct(key, at, tokens)
  local from, newest = unpack(redis.call('HMGET', key, 'from', 'newest'))
  if not from or at < tonumber(from) or at > tonumber(newest) then return end
  local old = tonumber(redis.call('HGET', key, 't' .. at) or 0)
  tokens = math.max(tokens, -old)
  if tokens == 0 then return end  -- also -0, which is no integer for Redis
  redis.call('HINCRBY', key, 't' .. at, tokens)
  redis.call('HINCRBY', key, 'tokens', tokens)
end

-- Takes shares out of their subjects. `lease` is what they hold; their buckets gain `tokens`.
local function give_back(lease, shares, tokens)
  for _, share in ipairs(shares) do
    local key = prefix .. ':subject:' .. share[1]
    lower(key, 'concurrent', -1)
    if lease.c ~= '0' then lower(key, 'reserved', '-' .. lease.c) end
    correct(key, share[2], tokens)
  end
end

-- Ends leases of a worker, up to `limit`, then forgets the worker: how many.
local function end_leases(worker, limit)
  local key = prefix .. ':leases:' .. worker
  local entries = redis.call('HRANDFIELD', key, limit, 'WITHVALUES')
  for index = 1, #entries, 2 do
    local lease = cjson.decode(entries[index + 1])
    give_back(lease, lease.s, -lease.t)
    redis.call('HDEL', key, entries[index])
  end
  if redis.call('EXISTS', key) == 0 then redis.call('ZREM', prefix .. ':workers', worker) end
  return #entries / 2
end

-- The workers without a heartbeat for too long. Where nobody has had one for that long (the store
-- was away, the clock was set), each worker gets the whole time again.
local function dead()
  local workers = prefix .. ':workers'
  local newest = redis.call('ZREVRANGE', workers, 0, 0, 'WITHSCORES')
  if #newest == 0 then return {} end
  local beat = tonumber(newest[2])
  if beat > now or beat < now - LEASE_SECONDS then
    for _, worker in ipairs(redis.call('ZRANGE', workers, 0, -1)) do
      redis.call('ZADD', workers, now, worker)
    end
    return {}
  end
  return redis.call('ZRANGEBYSCORE', workers, '-inf', '(' .. (now - LEASE_SECONDS))
end

-- A heartbeat.
local function renew(worker)
  dead()
  redis.call('ZADD', prefix .. ':workers', now, worker)
end

-- Ends leases of dead workers, but not those of `asker`: how many.
local function reap(asker)
  local ended = 0
  for _, worker in ipairs(dead()) do
    if worker ~= asker and ended < REAP_BATCH then
      ended = ended + end_leases(worker, REAP_BATCH - ended)
    end
  end
  return ended
end

-- Lets the ledger add to this budget the cost of other sources than before.
local function follow(subject)
  local key = prefix .. ':sources:' .. subject.name
  for _, source in ipairs(redis.call('SMEMBERS', key)) do
    redis.call('SREM', prefix .. ':budgets:' .. source, subject.name)
  end
  redis.call('DEL', key)
  for _, source in ipairs(subject.sources) do
    redis.call('SADD', key, source)
    redis.call('SADD', prefix .. ':budgets:' .. source, subject.name)
  end
  local row = prefix .. ':subject:' .. subject.name
  redis.call('HSET', row, 'sources', subject.fingerprint)
  redis.call('HDEL', row, 'period')
end

-- Whether a budget's sources have to be sent along: the fingerprint is another one.
local function sources_missing()
  for _, subject in ipairs(request.subjects) do
    if subject.budget and not subject.sources
      and redis.call('HGET', prefix .. ':subject:' .. subject.name, 'sources') ~= subject.fingerprint
    then return true end
  end
  return false
end

-- The accounts of the request's subjects, and what the demand exceeds. `refused`: in one that is
-- enforced.
local function examine()
  local accounts, violations, refused = {}, {}, false
  for index, subject in ipairs(request.subjects) do
    accounts[index] = account(subject)
    local before = #violations
    judge(index, subject, accounts[index], violations)
    refused = refused or (subject.enforce and #violations > before)
  end
  return accounts, violations, refused
end

local function standings(accounts)
  local result = {}
  for index, found in ipairs(accounts) do result[index] = standing(found) end
  return result
end

-- Reserves the request's demand in all of its subjects, or in none: the result for the caller, and
-- the shares of the lease (nil: refused).
local function reserve()
  for _, subject in ipairs(request.subjects) do
    if subject.budget and subject.sources then follow(subject) end
  end
  local accounts, violations, refused = examine()
  if refused and reap(request.worker) > 0 then accounts, violations, refused = examine() end
  if refused then
    return {refused = true, violations = violations, standings = standings(accounts)}
  end
  for _, found in ipairs(accounts) do
    if exceeds(sum({found.reserved, request.cost}), MAX_MONEY) then
      request.cost = '0'  -- only a dry run or no budget comes to this
    end
  end
  local shares = {}
  for index, found in ipairs(accounts) do
    found.requests = found.requests + 1
    found.tokens = found.tokens + request.tokens
    found.concurrent = found.concurrent + 1
    found.newest = second
    redis.call('HSET', found.key, 'requests', found.requests, 'tokens', found.tokens,
      'from', found.from, 'newest', second, 'concurrent', found.concurrent)
    redis.call('HINCRBY', found.key, 'r' .. second, 1)
    redis.call('HINCRBY', found.key, 't' .. second, request.tokens)
    if request.cost ~= '0' then
      redis.call('HINCRBY', found.key, 'reserved', request.cost)
      found.reserved = sum({found.reserved, request.cost})
    end
    shares[index] = {request.subjects[index].name, second}
  end
  local result = {
    second = second, cost = request.cost, violations = violations, standings = standings(accounts),
  }
  return result, shares
end

-- The result of a reservation whose reply was lost, for a caller that asks again.
local function repeated(lease)
  local accounts, at = {}, second
  for index, subject in ipairs(request.subjects) do
    accounts[index] = account(subject)
    for _, share in ipairs(lease.s) do
      if share[1] == subject.name then at = share[2] end
    end
  end
  return cjson.encode({
    second = at, cost = lease.c, violations = {}, standings = standings(accounts),
  })
end

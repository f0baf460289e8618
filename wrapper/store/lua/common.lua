-- What all scripts share. Each is this file and one of its neighbours, and runs atomically.
--
-- KEYS[1] is the prefix of all keys. It has a hash tag, so in a cluster they are on one node.
-- ARGV[1] is the request as JSON; each script returns its result as JSON. Keys:
--
--   :subject:NAME   hash  what a subject uses: the sums `requests` and `tokens` of its window, whose
--                         buckets r<second> and t<second> lie between `from` and `newest`;
--                         `concurrent`, `reserved`; `spent` since `period`, summed from `sources`
--   :leases:WORKER  hash  lease id -> JSON of its tokens t, cost c and shares s: [name, second]
--   :workers        zset  worker -> its last heartbeat
--   :done:WORKER    zset  numbers of settlements that are written, while they may be repeated
--   :sources:NAME   set   key:NAME, provider:NAME whose cost counts against this subject's budget
--   :budgets:SOURCE set   the other way round
--   :usage:DAY:KEY  hash  the ledger of a key: a letter and JSON [hour, provider, model, outcome]
--   :keys, :days:KEY, :days       what there is of those, and the days with any cost
--   :cost:DAY       hash  source -> cost
--
-- Money is in pico-USD up to 2^62, and a number of Lua is exact up to 2^53 only. So money is decimal
-- text: HINCRBY adds it, and it is compared in two halves.

local prefix = KEYS[1]
local request = cjson.decode(ARGV[1])
local MAX_MONEY = '4611686018427387904'
local LEASE_SECONDS = 20
local REAP_BATCH = 500

-- Seconds by the server's clock, or what a test says.
local now = request.now
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local second = math.floor(now)

local function halves(text)
  if #text <= 9 then return 0, tonumber(text) end
  return tonumber(text:sub(1, -10)), tonumber(text:sub(-9))
end

local function sum(texts)
  local high, low = 0, 0
  for _, text in ipairs(texts) do
    local h, l = halves(text or '0')
    high, low = high + h, low + l
  end
  high, low = high + math.floor(low / 1e9), low % 1e9
  if high == 0 then return string.format('%d', low) end
  return string.format('%.0f%09d', high, low)
end

local function exceeds(left, right)
  local high, low = halves(left)
  local other_high, other_low = halves(right)
  return high > other_high or (high == other_high and low > other_low)
end

-- HINCRBY that stops at 2^62.
local function raise(key, field, amount)
  local result = redis.pcall('HINCRBY', key, field, amount)
  if type(result) == 'table' or result > 4611686018427387904 then
    redis.call('HSET', key, field, MAX_MONEY)
  end
end

-- HINCRBY that stops at 0.
local function lower(key, field, amount)
  if redis.call('HINCRBY', key, field, amount) < 0 then redis.call('HSET', key, field, '0') end
end

-- What the ledger says that `sources` cost since the Unix time `start`.
local function cost_since(sources, start)
  local costs = {}
  for _, day in ipairs(redis.call('ZRANGEBYSCORE', prefix .. ':days', start / 86400, '+inf')) do
    for first = 1, #sources, 1000 do
      local last = math.min(first + 999, #sources)
      local found = redis.call('HMGET', prefix .. ':cost:' .. day, unpack(sources, first, last))
      for _, cost in ipairs(found) do
        if cost then costs[#costs + 1] = cost end
      end
    end
  end
  local total = sum(costs)
  return exceeds(total, MAX_MONEY) and MAX_MONEY or total
end

-- The start and the end of the budget period that `now` is in. The caller knows the calendar and
-- sends the bounds around its own time, this clock decides; no bounds: a period without end.
local function current_period(bounds)
  if #bounds == 0 then return 0, nil end
  for index = #bounds - 1, 1, -1 do
    if now >= bounds[index] or index == 1 then return bounds[index], bounds[index + 1] end
  end
end

-- Reads what `subject` uses now: drops buckets that are too old, or in the future (the clock was
-- set back), and sums `spent` anew where it is of another period or other sources. `keep` writes
-- nothing.
local function account(subject, keep)
  local key = prefix .. ':subject:' .. subject.name
  local row = redis.call('HMGET', key, 'requests', 'tokens', 'from', 'newest', 'concurrent',
    'reserved', 'spent', 'period', 'sources')
  local found = {
    key = key,
    requests = tonumber(row[1] or 0),
    tokens = tonumber(row[2] or 0),
    from = tonumber(row[3] or second),
    newest = tonumber(row[4] or second),
    concurrent = tonumber(row[5] or 0),
    reserved = row[6] or '0',
    spent = '0',
  }
  local dropped = false
  local function drop(first, last)
    for at = first, last do
      dropped = true
      local bucket = redis.call('HMGET', key, 'r' .. at, 't' .. at)
      found.requests = found.requests - tonumber(bucket[1] or 0)
      found.tokens = found.tokens - tonumber(bucket[2] or 0)
      if not keep then redis.call('HDEL', key, 'r' .. at, 't' .. at) end
    end
  end
  drop(found.from, math.min(second - 61, found.newest))
  drop(math.max(second + 1, found.from), found.newest)
  found.from = math.min(math.max(found.from, second - 60), second)
  found.newest = math.min(math.max(found.newest, found.from), second)
  if dropped and not keep then
    redis.call('HSET', key, 'requests', found.requests, 'tokens', found.tokens,
      'from', found.from, 'newest', found.newest)
  end
  if subject.budget then
    local start, stop = current_period(subject.bounds)
    found.spent, found.stop = row[7] or '0', stop
    if row[9] ~= subject.fingerprint or tonumber(row[8] or -1) ~= start then
      local sources = subject.sources or redis.call('SMEMBERS', prefix .. ':sources:' .. subject.name)
      found.spent = cost_since(sources, start)
      if not keep then redis.call('HSET', key, 'spent', found.spent, 'period', start) end
    end
  end
  return found
end

-- The second at which `count` of the requests (letter r) or tokens (t) no longer count.
local function frees(found, letter, count)
  for at = found.from, found.newest do
    count = count - tonumber(redis.call('HGET', found.key, letter .. at) or 0)
    if count <= 0 then return at + 61 end
  end
  return second + 61
end

-- Seconds until none of them counts.
local function empties(found, letter)
  for at = found.newest, found.from, -1 do
    if tonumber(redis.call('HGET', found.key, letter .. at) or 0) > 0 then return at + 61 - now end
  end
  return 0
end

-- What the caller makes a Standing of.
local function standing(found)
  return {
    found.requests, found.tokens, found.concurrent, found.spent, found.reserved,
    empties(found, 'r'), empties(found, 't'), found.stop and found.stop - now or -1,
  }
end

-- Adds to `violations` what the demand exceeds: subject, reason, used, seconds until it fits (-1:
-- no time makes it fit).
local function judge(index, subject, found, violations)
  local function violation(reason, used, wait)
    violations[#violations + 1] = {index, reason, used, wait}
  end
  local over = subject.requests and found.requests + 1 - subject.requests or 0
  if over > 0 then violation('requests', found.requests, frees(found, 'r', over) - now) end
  over = subject.tokens and found.tokens + request.tokens - subject.tokens or 0
  if over > 0 then violation('tokens', found.tokens, frees(found, 't', over) - now) end
  if subject.concurrent and found.concurrent >= subject.concurrent then
    violation('concurrency', found.concurrent, 1)
  end
  if subject.budget then
    local used = sum({found.spent, found.reserved})
    if exceeds(sum({used, request.cost}), subject.budget) then
      violation('budget', used, found.stop and found.stop - now or -1)
    end
  end
end

-- Corrects the tokens of a bucket that still counts.
local function correct(key, at, tokens)
  local from, newest = unpack(redis.call('HMGET', key, 'from', 'newest'))
  if tokens == 0 or not from or at < tonumber(from) or at > tonumber(newest) then return end
  local old = tonumber(redis.call('HGET', key, 't' .. at) or 0)
  tokens = math.max(tokens, -old)
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
  local pairs_ = redis.call('HRANDFIELD', key, limit, 'WITHVALUES')
  for index = 1, #pairs_, 2 do
    local lease = cjson.decode(pairs_[index + 1])
    give_back(lease, lease.s, -lease.t)
    redis.call('HDEL', key, pairs_[index])
  end
  if redis.call('EXISTS', key) == 0 then redis.call('ZREM', prefix .. ':workers', worker) end
  return #pairs_ / 2
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
  local found = {}
  for index, account_ in ipairs(accounts) do found[index] = standing(account_) end
  return found
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

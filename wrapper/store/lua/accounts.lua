-- What subjects use, and what a demand exceeds.

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

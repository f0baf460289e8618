-- What all scripts share: a script is common.lua, accounts.lua, leases.lua and a file of its own,
-- and runs atomically.
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
--   :usage:DAY:KEY  hash  the ledger of a key: a letter and JSON [hour, provider, model, outcome, tag]
--   :keys, :days:KEY, :days       what there is of those, and the days with any cost
--   :recent:NAME    text  what the request has used; NAME is JSON [key, id]
--   :recent         zset  those names -> when
--   :cost:DAY       hash  source -> cost
--   :deferred       hash  JSON [provider, id] -> JSON of the record, its money and who holds it
--   :due            zset  the same name -> the Unix time of the gateway's next question
--   :booked:NAME    string, kept for 31 days: who has booked it
--   :asked          string: the Unix time of the gateway's last question
--   :objects        string: where stored objects live (store/objects.py; no script uses it)
--   :file:NAME      string, kept for 31 days: what is known of an uploaded file
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

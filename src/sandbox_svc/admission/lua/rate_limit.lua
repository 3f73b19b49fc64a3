-- Take one or more places in a moving window, on this server's clock, and say what is left: one round trip.
-- KEYS[1]  list of the stamps (microseconds) of what was admitted, oldest first
-- ARGV[1]  most admissions in any window
-- ARGV[2]  length of the window in microseconds
-- ARGV[3]  places to take; 0 only looks
-- Returns {1 when admitted else 0, places left, microseconds until the oldest admission leaves the window}.
local amount = tonumber(ARGV[1])
local window = tonumber(ARGV[2])
local cost = tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local newest = redis.call('LINDEX', KEYS[1], -1)
if newest and tonumber(newest) > now then
  -- The server's clock was set back: these stamps would hold the window shut until it catches up.
  redis.call('DEL', KEYS[1])
end

-- A bounded number per call, so that no call holds the server up. What is left over counts once more, and so many
-- places have just become free that it refuses nobody.
local oldest = redis.call('LINDEX', KEYS[1], 0)
for _ = 1, math.max(1000, cost) do
  if not oldest or tonumber(oldest) > now - window then
    break
  end
  redis.call('LPOP', KEYS[1])
  oldest = redis.call('LINDEX', KEYS[1], 0)
end

local taken = redis.call('LLEN', KEYS[1])
local admitted = 0
if taken + cost <= amount then
  admitted = 1
  for _ = 1, cost do
    redis.call('RPUSH', KEYS[1], string.format('%.0f', now))
  end
  if cost > 0 then
    taken = taken + cost
    redis.call('PEXPIRE', KEYS[1], math.ceil(window / 1000))
    oldest = oldest or now
  end
end

local wait = 0
if oldest then
  wait = math.max(0, tonumber(oldest) + window - now)
end
return {admitted, math.max(0, amount - taken), string.format('%.0f', wait)}

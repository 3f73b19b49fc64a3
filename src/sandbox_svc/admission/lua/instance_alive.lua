-- Tell whether an instance lives, as far as it can be known here.
-- KEYS[1]  hash, per engine: synced_at and settled_at (ms)
-- KEYS[2]  sorted set, per engine: instance -> alive until (ms)
-- ARGV[1]  instance
-- ARGV[2]  life of an instance without a step, ms
-- Returns 1 when it lives, 0 when it is dead for certain, -1 when that is unknown.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local synced = tonumber(redis.call('HGET', KEYS[1], 'synced_at') or '')
local settled = tonumber(redis.call('HGET', KEYS[1], 'settled_at') or '0')
local until_ms = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or '')
if until_ms and until_ms > now then
  return 1
end
-- All may have been cut off alike, and are about to say that they live; or it never used this Redis at all.
if not until_ms or not synced or now - synced > tonumber(ARGV[2]) / 2 or synced > now + 1000 or now < settled then
  return -1
end
return 0

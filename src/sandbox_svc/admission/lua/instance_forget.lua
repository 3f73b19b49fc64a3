-- Note that an instance is dead, and give back its permits of the languages named.
-- KEYS[1]  sorted set, per engine: instance -> alive until (ms)
-- KEYS[2] and on, three per language named: sorted sets of permit -> expires at, permit -> fencing number, instance -> wants
-- ARGV[1]  instance
-- ARGV[2]  1 when it is known to have ended, 0 to do nothing if it has given a sign of life meanwhile
-- Returns the number of permits given back, or -1 when it lives.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local until_ms = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '')
if ARGV[2] ~= '1' and until_ms and until_ms > now then
  return -1
end
if until_ms and until_ms > now then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
end
local count = 0
for i = 2, #KEYS, 3 do
  for _, permit in ipairs(redis.call('ZRANGE', KEYS[i], 0, -1)) do
    if string.match(permit, '^(.*)/') == ARGV[1] then
      redis.call('ZREM', KEYS[i], permit)
      redis.call('ZREM', KEYS[i + 1], permit)
      count = count + 1
    end
  end
  redis.call('ZREM', KEYS[i + 2], ARGV[1])
end
return count

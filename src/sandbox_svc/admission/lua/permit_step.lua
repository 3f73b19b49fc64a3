-- One step of one instance with the permits of one language: it states all that it holds, and may ask for one more.
-- Since every step states everything, any step mends what a lost one left: a permit given back in a message that never
-- came, or granted in an answer that never came. A step that comes late, after a later one, is refused by its number.
-- KEYS[1]  hash, per engine: synced_at and settled_at (ms), fence (last fencing number given)
-- KEYS[2]  sorted set, per engine: instance -> alive until (ms)
-- KEYS[3]  hash, per engine: instance -> birthmark
-- KEYS[4]  sorted set: permit "<instance>/<n>" -> expires at (ms)
-- KEYS[5]  sorted set: permit -> its fencing number
-- KEYS[6]  sorted set: instance -> wants a permit until (ms)
-- KEYS[7]  hash: instance -> number of its last step
-- ARGV[1]  instance
-- ARGV[2]  its birthmark
-- ARGV[3]  number of this step; grows with every step of the instance
-- ARGV[4]  bound: most permits over all instances
-- ARGV[5]  life of a permit without a step, ms
-- ARGV[6]  life of an instance without a step, ms
-- ARGV[7]  settle time, ms: how long nothing is granted once the holders may be incomplete
-- ARGV[8]  how many in this instance wait for a permit, the one that asks now included
-- ARGV[9]  permit to take, or an empty string
-- ARGV[10] and on: permits held
-- Returns {status, fencing number of the permit taken or 0, permits of all instances, ms after which to ask again or 0,
--          permits this instance ought to give back, the bound of a living instance that has another one or 0,
--          fencing numbers of the permits held, in their order};
-- status is renewed (nothing asked), granted, full, settling or stale (a later step was here; nothing was done).
local instance, mark, step, bound = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local lease, alive, settle, waiting = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local wanted = ARGV[9]

local WANT_MS = 3000
local DAY_MS = 86400000
local state_key, alive_key, mark_key, holder_key, fence_key, want_key, step_key = unpack(KEYS)

local last_step = tonumber(redis.call('HGET', step_key, instance) or '0')
if last_step >= step then
  return {'stale', 0, 0, 0, 0, 0}
end
redis.call('HSET', step_key, instance, string.format('%.0f', step))

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function stamp(number)
  return string.format('%.0f', number)
end

-- Where no instance came by for a while, either all of them were cut off, or this Redis is new or lost its data, or its
-- clock was moved. The holders listed here may then be fewer than there are; those who live say so within settle time.
local synced = tonumber(redis.call('HGET', state_key, 'synced_at') or '')
local settled = tonumber(redis.call('HGET', state_key, 'settled_at') or '0')
if not synced or now - synced > alive / 2 or synced > now + 1000 then
  settled = now + settle
end
redis.call('HSET', state_key, 'synced_at', stamp(now), 'settled_at', stamp(settled))
redis.call('ZADD', alive_key, stamp(now + alive), instance)
redis.call('HSET', mark_key, instance, mark)

-- All should have the same bound, for each goes by its own.
local bound_field = 'bound ' .. holder_key
local other_bound = 0
local said, by = string.match(redis.call('HGET', state_key, bound_field) or '', '^(%d+) (.*)$')
if said and tonumber(said) ~= bound and by ~= instance then
  if tonumber(redis.call('ZSCORE', alive_key, by) or '0') > now then
    other_bound = tonumber(said)
  end
end
redis.call('HSET', state_key, bound_field, stamp(bound) .. ' ' .. instance)

-- Leave out who died days ago; until then a dead instance is known to be dead, not unknown.
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', alive_key, '-inf', stamp(now - 7 * DAY_MS))) do
  redis.call('ZREM', alive_key, gone)
  redis.call('HDEL', mark_key, gone)
  redis.call('HDEL', step_key, gone)
end

for _, permit in ipairs(redis.call('ZRANGEBYSCORE', holder_key, '-inf', stamp(now))) do
  redis.call('ZREM', holder_key, permit)
  redis.call('ZREM', fence_key, permit)
end
-- Stamps from before the clock was set back would keep a dead holder for as long as it was set back.
for _, permit in ipairs(redis.call('ZRANGEBYSCORE', holder_key, stamp(now + lease + 1000), '+inf')) do
  redis.call('ZADD', holder_key, stamp(now + lease), permit)
end
redis.call('ZREMRANGEBYSCORE', want_key, '-inf', stamp(now))

-- The clock keeps fencing numbers growing when the data is lost, the counter when the clock is set back.
local last_fence = tonumber(redis.call('HGET', state_key, 'fence') or '0')
local function next_fence()
  last_fence = math.max(last_fence + 1, time[1] * 1000000 + time[2])
  redis.call('HSET', state_key, 'fence', stamp(last_fence))
  return last_fence
end

local is_held = {}
for i = 10, #ARGV do
  is_held[ARGV[i]] = true
end
local counts = {[instance] = 0}
for _, permit in ipairs(redis.call('ZRANGE', holder_key, 0, -1)) do
  local owner = string.match(permit, '^(.*)/')
  if owner ~= instance then
    counts[owner] = (counts[owner] or 0) + 1
  elseif not is_held[permit] then
    redis.call('ZREM', holder_key, permit)
    redis.call('ZREM', fence_key, permit)
  end
end
-- What is held is registered even above the bound: the container exists, and counting it is what keeps others from more.
for i = 10, #ARGV do
  redis.call('ZADD', holder_key, stamp(now + lease), ARGV[i])
  if not redis.call('ZSCORE', fence_key, ARGV[i]) then
    redis.call('ZADD', fence_key, stamp(next_fence()), ARGV[i])
  end
  counts[instance] = counts[instance] + 1
end

local total = redis.call('ZCARD', holder_key)
for _, other in ipairs(redis.call('ZRANGE', want_key, 0, -1)) do
  counts[other] = counts[other] or 0
end
local sharers = 0
for _ in pairs(counts) do
  sharers = sharers + 1
end
-- An instance below its share that waits for one goes before those who have theirs.
local share = math.max(1, math.floor(bound / sharers))
local reserved = 0
for _, other in ipairs(redis.call('ZRANGE', want_key, 0, -1)) do
  if other ~= instance then
    reserved = reserved + math.max(0, share - counts[other])
  end
end

local status, fence, wait = 'renewed', 0, 0
if wanted ~= '' then
  if now < settled then
    status, wait = 'settling', settled - now
  elseif total >= bound or (counts[instance] >= share and bound - total <= reserved) then
    status = 'full'
    local first = redis.call('ZRANGE', holder_key, 0, 0, 'WITHSCORES')
    if first[2] then
      wait = math.max(1, tonumber(first[2]) - now)
    end
  else
    status, fence = 'granted', next_fence()
    redis.call('ZADD', holder_key, stamp(now + lease), wanted)
    redis.call('ZADD', fence_key, stamp(fence), wanted)
    total = total + 1
    counts[instance] = counts[instance] + 1
    waiting = waiting - 1
  end
end
if waiting > 0 then
  redis.call('ZADD', want_key, stamp(now + WANT_MS), instance)
else
  redis.call('ZREM', want_key, instance)
end

-- To give back: its own permits that came last, above the bound; or what it has above its share and others wait for.
local surplus = math.min(math.max(0, counts[instance] - share), math.max(0, reserved - math.max(0, bound - total)))
local above = 0
local fences = {}
for i = 10, #ARGV do
  if redis.call('ZRANK', fence_key, ARGV[i]) >= bound then
    above = above + 1
  end
  fences[#fences + 1] = redis.call('ZSCORE', fence_key, ARGV[i])
end

redis.call('PEXPIRE', state_key, 7 * DAY_MS)
redis.call('PEXPIRE', alive_key, 7 * DAY_MS)
redis.call('PEXPIRE', mark_key, 7 * DAY_MS)
redis.call('PEXPIRE', step_key, 7 * DAY_MS)
redis.call('PEXPIRE', holder_key, lease + 1000)
redis.call('PEXPIRE', fence_key, lease + 1000)
redis.call('PEXPIRE', want_key, WANT_MS)
return {status, stamp(fence), total, math.ceil(wait), math.max(surplus, above), other_bound, unpack(fences)}

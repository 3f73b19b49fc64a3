-- Show that this server takes writes: a replica, a full server and one that may not persist all refuse here.
-- KEYS[1]  a key of no meaning
-- ARGV[1]  its life in milliseconds
-- Returns 1.
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
return 1

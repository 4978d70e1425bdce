"""The Lua scripts: each operation is one of them, atomic, in one round trip, on declared keys of one shard.

KEYS of all of them begin with the record, then `u:{tag}`, the user's index and epoch: a sorted set with a
member for each session ("handle" + "hash", scored by when its record expires, in ms) and "e", whose score is
minus the epoch, so that pruning by score never takes it. A signed-in record lives while `u` has its epoch
and its member: nothing else can bring it back. Every write of a record sets its TTL in the same script, and
that of `u` to at least as much; the first write is the one that a full node refuses, so none is half done.

core/sessions/model has the same in Python, statement by statement; a test runs both side by side.
"""

import hashlib
from typing import NamedTuple

PRELUDE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function int(n) return string.format('%.0f', n) end
local record, user = KEYS[1], KEYS[2]

-- A record's state, before anything is done with it. what: m, e, h, p, g, v, r; a pointer has p
local function look(hash)
  local f = redis.pcall('HMGET', record, 'm', 'e', 'h', 'p', 'g', 'v', 'r')
  if f.err then return 'DAMAGED', {} end
  if f[4] == '' then return 'ENDED', f end
  if f[4] then return 'MOVED', f end
  if not f[1] then return 'GONE', f end
  local created, absolute, idle, renewal = string.match(f[1], '^%d+ (%d+) (%d+) (%d+) (%d+) ')
  if not created then return 'DAMAGED', f end
  -- Numbers that no store has written: PEXPIREAT and HINCRBY would not take them
  local numbers = string.match((f[6] or '') .. ' ' .. (f[7] or ''), '^[1-9]%d* %d+$')
  if not numbers or math.max(created, absolute, idle, renewal, f[6], f[7]) > 2 ^ 50 then
    return 'DAMAGED', f
  end
  f.left = created + absolute - now
  f.idle, f.renewal = tonumber(idle), tonumber(renewal)
  f.member = string.sub(f[3] or '', 1, 8) .. hash
  if f.left <= 0 then
    redis.call('DEL', record)
    return 'GONE', f
  end
  if f[2] then
    local epoch = redis.pcall('ZSCORE', user, 'e')
    if type(epoch) == 'table' then return 'DAMAGED', {} end
    if not epoch or -tonumber(epoch) ~= tonumber(f[2]) or not redis.call('ZSCORE', user, f.member) then
      redis.call('DEL', record)
      redis.call('ZREM', user, f.member)
      return 'REVOKED', f
    end
  end
  return 'OK', f
end

-- u lives as long as any record of it
local function keep(ttl)
  if redis.call('PTTL', user) < ttl + 1000 then redis.call('PEXPIREAT', user, int(now + ttl + 1000)) end
end

-- Its idle time begins again, when a tenth of it has passed; returns the TTL
local function touch(f, least)
  local ttl, want = redis.call('PTTL', record), math.min(f.idle, f.left)
  if want - ttl < f.idle * least then return ttl end
  redis.call('PEXPIREAT', record, int(now + want))
  if f[2] then
    redis.call('ZADD', user, 'XX', int(now + want), f.member)
    keep(want)
  end
  return want
end

local function prune() redis.call('ZREMRANGEBYSCORE', user, 0, '(' .. int(now)) end

-- ARGV from `at` on: how many steps, then what, field, value of each. First all are tried, then done
local function try(key, at)
  for i = at + 1, at + ARGV[at] * 3, 3 do
    local what, now_has = ARGV[i], false
    if what == 'incr' or what == 'append' then now_has = redis.call('HGET', key, ARGV[i + 1]) end
    if now_has and string.byte(now_has) < 32 then return 'OPAQUE' end
    if what == 'incr' and now_has and not string.match(now_has, '^%-?%d+$') then return 'KIND' end
    if what == 'incr' and (#(now_has or '') > 17 or #ARGV[i + 2] > 17) then return 'KIND' end
    if what == 'append' and now_has and not string.match(now_has, '^%[.*%]$') then return 'KIND' end
  end
end

-- The last step "once" has a token: a client that heard no answer has sent this again, and it was done
local function twice(key)
  return ARGV[#ARGV - 2] == 'once' and redis.call('HGET', key, ARGV[#ARGV - 1]) == ARGV[#ARGV]
end

local function apply(key, at)
  local results = {}
  for i = at + 1, at + ARGV[at] * 3, 3 do
    local what, field, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if what == 'set' or what == 'once' then redis.call('HSET', key, field, value)
    elseif what == 'del' then redis.call('HDEL', key, field)
    elseif what == 'incr' then redis.call('HINCRBY', key, field, value)
    else
      local list = redis.call('HGET', key, field) or '[]'
      local joint = string.match(list, '^%[%s*%]$') and '' or ','
      redis.call('HSET', key, field, string.sub(list, 1, -2) .. joint .. value .. ']')
    end
    if what == 'incr' or what == 'append' then
      results[#results + 1] = field
      results[#results + 1] = redis.call('HGET', key, field)
    end
  end
  return results
end
"""

BODIES = {
    # KEYS record, u; ARGV hash, least part of idle to touch after, how the id came, grace in ms
    # how: 0 a request brought it; 1 it did, by an old id; 2 it is looked at again
    # → OK now ttl fields | MOVED pointer | ENDED | GONE | REVOKED | DAMAGED
    "load": """
local state, f = look(ARGV[1])
local g = tonumber(f[5] or '')
if ARGV[3] == '1' and g and g > 0 and now > g then return {'GONE'} end
if state == 'MOVED' then return {state, f[4]} end
if state ~= 'OK' then return {state} end
local ttl = touch(f, tonumber(ARGV[2]))
if g == 0 and ARGV[3] == '0' then redis.pcall('HSET', record, 'g', int(now + ARGV[4])) end
return {state, int(now), int(ttl), redis.call('HGETALL', record)}
""",
    # KEYS record, u; ARGV hash, expected version or '', least, m's "absolute idle renewal" or '', steps
    # → OK now ttl version results renew-at | CONFLICT | OPAQUE | KIND | as load
    "save": """
local state, f = look(ARGV[1])
if state == 'MOVED' then return {state, f[4]} end
if state ~= 'OK' then return {state} end
if twice(record) then
  local found = {}
  for i = 6, 5 + ARGV[5] * 3, 3 do
    if ARGV[i] == 'incr' or ARGV[i] == 'append' then
      found[#found + 1] = ARGV[i + 1]
      found[#found + 1] = redis.call('HGET', record, ARGV[i + 1]) or ''
    end
  end
  return {state, int(now), int(redis.call('PTTL', record)), tonumber(f[6]), found, f[7]}
end
if ARGV[2] ~= '' and ARGV[2] ~= f[6] then return {'CONFLICT'} end
local no = try(record, 5)
if no then return {no} end
local version, least, renew_at = redis.call('HINCRBY', record, 'v', 1), tonumber(ARGV[3]), f[7]
if ARGV[4] ~= '' then
  local schema, created, kind = string.match(f[1], '^(%d+) (%d+) %d+ %d+ %d+ (.*)$')
  local absolute, idle, renewal = string.match(ARGV[4], '^(%d+) (%d+) (%d+)$')
  redis.call('HSET', record, 'm', schema .. ' ' .. created .. ' ' .. ARGV[4] .. ' ' .. kind)
  f.left, f.idle, least = created + absolute - now, tonumber(idle), -math.huge
  renew_at = int(math.min(tonumber(f[7]), now + renewal))
  redis.call('HSET', record, 'r', renew_at)
end
local results = apply(record, 5)
local ttl = touch(f, least)
return {state, int(now), int(ttl), version, results, renew_at}
""",
    # KEYS record, u; ARGV hash, handle and nonce, schema, "absolute idle renewal", absolute, idle, renewal,
    # class, user or '', max sessions or 0, what then ("oldest" or "reject"), member it replaces or '', steps
    # → OK now ttl epoch evicted | EXISTS | FULL
    "create": """
if redis.call('EXISTS', record) == 1 then
  local own = redis.call('HMGET', record, 'h', 'e')
  if own[1] ~= ARGV[2] then return {'EXISTS'} end
  return {'OK', int(now), int(redis.call('PTTL', record)), own[2] or '', {}}
end
local ttl, epoch, evicted = math.min(ARGV[5], ARGV[6]), '', {}
local member = string.sub(ARGV[2], 1, 8) .. ARGV[1]
if ARGV[9] ~= '' then
  prune()
  local over = math.max(redis.call('ZCARD', user) - 1, 0) + 1 - ARGV[10]
  if redis.call('ZSCORE', user, ARGV[12]) then over = over - 1 end
  if tonumber(ARGV[10]) > 0 and over > 0 then
    if ARGV[11] == 'reject' then return {'FULL'} end
    evicted = redis.call('ZRANGEBYSCORE', user, 0, '+inf', 'LIMIT', 0, int(over))
  end
  local score = redis.call('ZSCORE', user, 'e')
  epoch = int(score and -tonumber(score) or now)
end
redis.call('HSET', record, 'm', ARGV[3] .. ' ' .. int(now) .. ' ' .. ARGV[4] .. ' ' .. ARGV[8], 'h', ARGV[2],
  'v', 1, 'r', int(now + ARGV[7]))
redis.call('PEXPIREAT', record, int(now + ttl))
if epoch ~= '' then
  redis.call('HSET', record, 'e', epoch, 'u', ARGV[9])
  for _, each in ipairs(evicted) do redis.call('ZREM', user, each) end
  redis.call('ZADD', user, '-' .. epoch, 'e', int(now + ttl), member)
  keep(ttl)
end
apply(record, 13)
return {'OK', int(now), int(ttl), epoch, evicted}
""",
    # KEYS record, u, new record; ARGV hash, expected or '', new hash, new nonce, how long the old id may lead
    # on in ms, 1 if the steps change anything, steps → OK now ttl version results renew-at | as save
    "renew": """
local state, f = look(ARGV[1])
if state == 'MOVED' then return {state, f[4]} end
if state ~= 'OK' then return {state} end
if ARGV[2] ~= '' and ARGV[2] ~= f[6] then return {'CONFLICT'} end
local no = try(record, 7)
if no then return {no} end
local fresh, handle, renew_at = KEYS[3], string.sub(f[3], 1, 8), int(now + f.renewal)
local ttl = math.min(f.idle, f.left)
redis.call('DEL', fresh)
local all = redis.call('HGETALL', record)
for i = 1, #all, 1000 do redis.call('HSET', fresh, unpack(all, i, math.min(i + 999, #all))) end
redis.call('HSET', fresh, 'h', handle .. ARGV[4], 'r', renew_at, 'g', 0)
redis.call('PEXPIREAT', fresh, int(now + ttl))
local version = redis.call('HINCRBY', fresh, 'v', ARGV[6])
local results = apply(fresh, 7)
redis.call('DEL', record)
redis.call('HSET', record, 'p', ARGV[3] .. ' ' .. string.sub(f[3], 9))
if f[5] then redis.call('HSET', record, 'g', f[5]) end
redis.call('PEXPIREAT', record, int(now + math.min(tonumber(ARGV[5]), ttl)))
if f[2] then
  redis.call('ZREM', user, f.member)
  redis.call('ZADD', user, int(now + ttl), handle .. ARGV[3])
  keep(ttl)
end
return {'OK', int(now), int(ttl), version, results, renew_at}
""",
    # KEYS record, u; ARGV hash, expected version or '', how long it is known to have ended in ms
    # → OK | CONFLICT | as load
    "destroy": """
local state, f = look(ARGV[1])
if state == 'MOVED' then return {state, f[4]} end
if state == 'DAMAGED' then redis.call('DEL', record) end
if state ~= 'OK' then return {state} end
if ARGV[2] ~= '' and ARGV[2] ~= f[6] then return {'CONFLICT'} end
redis.call('DEL', record)
if f[2] then redis.call('ZREM', user, f.member) end
if tonumber(ARGV[3]) > 0 then
  redis.call('HSET', record, 'p', '')
  redis.call('PEXPIREAT', record, int(now + ARGV[3]))
end
return {state}
""",
    # KEYS any record, u; ARGV handle, 8 characters → OK members that are gone
    "revoke": """
local gone = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', user, 0, '+inf')) do
  if string.sub(member, 1, 8) == ARGV[1] then
    redis.call('ZREM', user, member)
    gone[#gone + 1] = member
  end
end
return {'OK', gone}
""",
    # KEYS record to be kept, u; ARGV its hash or '' → OK members that are gone, epoch | MOVED pointer
    # An index that is gone has no session alive. A full node cannot take a new epoch: then all of u goes
    "revoke_all": """
local score = redis.call('ZSCORE', user, 'e')
if not score then return {'OK', {}, ''} end
local epoch, state, f = int(math.max(1 - tonumber(score), now)), '', {}
if ARGV[1] ~= '' then state, f = look(ARGV[1]) end
if state == 'MOVED' then return {state, f[4]} end
local kept = state == 'OK' and f[2] and f.member
local gone = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', user, 0, '+inf')) do
  if member ~= kept then
    redis.call('ZREM', user, member)
    gone[#gone + 1] = member
  end
end
local done = redis.pcall('ZADD', user, '-' .. epoch, 'e')
if type(done) == 'table' and done.err then
  redis.call('DEL', user)
  return {'OK', gone, ''}
end
if kept then redis.call('HSET', record, 'e', epoch) end
return {'OK', gone, epoch}
""",
    # KEYS any record, u → OK now members and scores
    "index": """
prune()
return {'OK', int(now), redis.call('ZRANGEBYSCORE', user, 0, '+inf', 'WITHSCORES')}
""",
    # KEYS records → OK, of each: m, h, d, e, v or nils
    "show": """
local all = {}
for i, key in ipairs(KEYS) do
  local f = redis.call('HMGET', key, 'm', 'h', 'd', 'e', 'v')
  for j = 1, 5 do f[j] = f[j] or '' end
  all[i] = f
end
return {'OK', all}
""",
    # KEYS records of members that are gone, u last → OK
    "purge": """
for i = 1, #KEYS - 1 do redis.call('DEL', KEYS[i]) end
return {'OK'}
""",
}

# What may run on a full node: nothing new is stored
ON_A_FULL_NODE = {"load", "destroy", "revoke", "revoke_all", "index", "show", "purge"}
FLAGS = {name: "allow-oom" if name in ON_A_FULL_NODE else "" for name in BODIES}


class Script(NamedTuple):
    """text: for Redis 7, which reads the flags; plain: for older ones, where a script has none."""

    name: str
    text: str
    sha: str
    plain: str
    plain_sha: str


def _script(name: str) -> Script:
    plain = PRELUDE + BODIES[name]
    text = "#!lua" + (f" flags={FLAGS[name]}" if FLAGS[name] else "") + "\n" + plain
    return Script(name, text, *(_sha(text), plain, _sha(plain)))


def _sha(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


SCRIPTS = {name: _script(name) for name in BODIES}

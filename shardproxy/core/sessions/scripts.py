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

# What scripts begin with; each has the parts that it needs
TIME = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local record, user = KEYS[1], KEYS[2]
local function int(n) return string.format('%.0f', n) end
"""

LOOK = r"""
local META = '>BI6I5I5I5I4I5c8c8'  -- as records.Meta has it

-- A record's state, before anything is done with it, and what it says of itself
local function look()
  local has = redis.pcall('HMGET', record, '\0', '\0e', '\0g', '\0p')
  if has.err then return 'DAMAGED', {} end
  local about, epoch, pointer = has[1], has[2], has[4] or nil
  if pointer then return pointer == '' and 'ENDED' or 'MOVED', {pointer = pointer, grace = has[3]} end
  if not about then return 'GONE', {} end
  if #about < 48 then return 'DAMAGED', {} end
  local schema, created, absolute, idle, renewal, version, due, handle, nonce = struct.unpack(META, about)
  local f = {
    epoch = epoch, grace = has[3], schema = schema, created = created, absolute = absolute, idle = idle,
    renewal = renewal, version = version, due = due, handle = handle, nonce = nonce,
    kind = string.sub(about, 48), left = created + absolute - now,
  }
  if f.left <= 0 then
    redis.call('DEL', record)
    return 'GONE', f
  end
  if epoch then
    f.member = handle .. string.sub(record, -24)
    local wanted = redis.pcall('ZSCORE', user, 'e')
    if type(wanted) == 'table' then return 'DAMAGED', {} end
    if not wanted or -tonumber(wanted) ~= tonumber(epoch) or not redis.call('ZSCORE', user, f.member) then
      redis.call('DEL', record)
      redis.call('ZREM', user, f.member)
      return 'REVOKED', f
    end
  end
  return 'OK', f
end
"""

KEEP = """
-- u lives as long as any record of it
local function keep(ttl)
  if redis.call('PTTL', user) < ttl + 1000 then redis.call('PEXPIREAT', user, int(now + ttl + 1000)) end
end
"""

TOUCH = """
-- Its idle time begins again, when a tenth of it has passed; returns the TTL
local function touch(f, least)
  local ttl, want = redis.call('PTTL', record), math.min(f.idle, f.left)
  if want - ttl < f.idle * least then return ttl end
  redis.call('PEXPIREAT', record, int(now + want))
  if f.epoch then
    redis.call('ZADD', user, 'XX', int(now + want), f.member)
    keep(want)
  end
  return want
end
"""

PRUNE = """
local function prune() redis.call('ZREMRANGEBYSCORE', user, 0, '(' .. int(now)) end
"""

STEPS = r"""
-- Steps: ARGV[at] has a letter for each, then come field and value of each. s set, d delete, i add, a append;
-- at last t, a token: a client that heard no answer may send all this again. First all are tried, then done
local function try(at)
  local kinds = ARGV[at]
  if not string.find(kinds, '[ia]') then return end
  for n = 1, #kinds do
    local what, value = string.sub(kinds, n, n), ARGV[at + 2 * n]
    local has = (what == 'i' or what == 'a') and redis.call('HGET', record, ARGV[at + 2 * n - 1])
    if has and string.byte(has) < 32 then return 'OPAQUE' end
    if what == 'i' and has and not string.match(has, '^%-?%d+$') then return 'KIND' end
    if what == 'i' and (#(has or '') > 17 or #value > 17) then return 'KIND' end
    if what == 'a' and has and not string.match(has, '^%[.*%]$') then return 'KIND' end
  end
end

local function pack(f)
  return struct.pack('>BI6I5I5I5I4I5c8c8', f.schema, f.created, f.absolute, f.idle, f.renewal, f.version,
    f.due, f.handle, f.nonce) .. f.kind
end

-- f: what the record says of itself from now on
local function apply(key, at, f)
  local kinds, results = ARGV[at], {}
  if #ARGV < 1000 and not string.find(kinds, '[^st]') then
    redis.call('HSET', key, '\0', pack(f), unpack(ARGV, at + 1))
    return results
  end
  redis.call('HSET', key, '\0', pack(f))
  for n = 1, #kinds do
    local what, field, value = string.sub(kinds, n, n), ARGV[at + 2 * n - 1], ARGV[at + 2 * n]
    if what == 's' or what == 't' then redis.call('HSET', key, field, value)
    elseif what == 'd' then redis.call('HDEL', key, field)
    elseif what == 'i' then redis.call('HINCRBY', key, field, value)
    else
      local list = redis.call('HGET', key, field) or '[]'
      local joint = string.match(list, '^%[%s*%]$') and '' or ','
      redis.call('HSET', key, field, string.sub(list, 1, -2) .. joint .. value .. ']')
    end
    if what == 'i' or what == 'a' then
      results[#results + 1] = field
      results[#results + 1] = redis.call('HGET', key, field)
    end
  end
  return results
end
"""

LIVE = TIME + LOOK + KEEP + TOUCH

# Parts and text of each
BODIES = {
    # KEYS record, u; ARGV "how least grace": how the id came, part of idle to touch after, grace in ms
    # how: 0 a request brought it; 1 it did, by an old id; 2 it is looked at again
    # → OK now ttl fields | MOVED pointer | ENDED '' | GONE | REVOKED | DAMAGED
    "load": (LIVE, r"""
local how, least, grace = string.match(ARGV[1], '^(%d) (%S+) (%d+)$')
local state, f = look()
local g = tonumber(f.grace or '')
if how == '1' and g and g > 0 and now > g then return {'GONE'} end
if state ~= 'OK' then return {state, f.pointer} end
local ttl = touch(f, tonumber(least))
if g == 0 and how == '0' then redis.pcall('HSET', record, '\0g', int(now + grace)) end
return {state, now, ttl, redis.call('HGETALL', record)}
"""),
    # KEYS record, u; ARGV "least expected times": as load, the version or nothing, "absolute idle renewal" or
    # nothing; steps → OK now ttl version renew-at results | CONFLICT | OPAQUE | KIND | as load
    "save": (LIVE + STEPS, r"""
local state, f = look()
if state ~= 'OK' then return {state, f.pointer} end
local kinds = ARGV[2]
if string.sub(kinds, -1) == 't' and redis.call('HGET', record, '\0t') == ARGV[#ARGV] then
  local found = {}
  for n = 1, #kinds do
    if string.find(string.sub(kinds, n, n), '[ia]') then
      found[#found + 1] = ARGV[1 + 2 * n]
      found[#found + 1] = redis.call('HGET', record, ARGV[1 + 2 * n]) or ''
    end
  end
  return {state, now, redis.call('PTTL', record), f.version, f.created + f.due, found}
end
local least, expected, times = string.match(ARGV[1], '^(%S+) (%d*) (.*)$')
if expected ~= '' and tonumber(expected) ~= f.version then return {'CONFLICT'} end
local no = try(2)
if no then return {no} end
f.version, least = (f.version + 1) % 2^32, tonumber(least)
if times ~= '' then
  local absolute, idle, renewal = string.match(times, '^(%d+) (%d+) (%d+)$')
  f.absolute, f.idle, f.renewal, least = tonumber(absolute), tonumber(idle), tonumber(renewal), -math.huge
  f.left, f.due = f.created + f.absolute - now, math.max(0, math.min(f.due, now + f.renewal - f.created))
end
local results = apply(record, 2, f)
return {state, now, touch(f, least), f.version, f.created + f.due, results}
"""),
    # KEYS record, u; ARGV handle and nonce, schema, absolute, idle, renewal, class, user or '', max sessions
    # or 0, what then ("oldest" or "reject"), member it replaces or '', steps
    # → OK now ttl epoch evicted | EXISTS | FULL
    "create": (TIME + KEEP + PRUNE + STEPS, r"""
local f = {
  schema = ARGV[2], created = now, absolute = ARGV[3] + 0, idle = ARGV[4] + 0, renewal = ARGV[5] + 0,
  version = 1, due = ARGV[5], handle = string.sub(ARGV[1], 1, 8), nonce = string.sub(ARGV[1], 9),
  kind = ARGV[6],
}
if redis.call('EXISTS', record) == 1 then
  local own = redis.call('HMGET', record, '\0', '\0e')
  if string.sub(own[1] or '', 32, 47) ~= ARGV[1] then return {'EXISTS'} end
  return {'OK', now, redis.call('PTTL', record), own[2] or '', {}}
end
local ttl, epoch, evicted = math.min(f.absolute, f.idle), '', {}
if ARGV[7] ~= '' then
  prune()
  local over = math.max(redis.call('ZCARD', user) - 1, 0) + 1 - ARGV[8]
  if redis.call('ZSCORE', user, ARGV[10]) then over = over - 1 end
  if tonumber(ARGV[8]) > 0 and over > 0 then
    if ARGV[9] == 'reject' then return {'FULL'} end
    evicted = redis.call('ZRANGEBYSCORE', user, 0, '+inf', 'LIMIT', 0, int(over))
  end
  local score = redis.call('ZSCORE', user, 'e')
  epoch = int(score and -tonumber(score) or now)
end
redis.call('HSET', record, '\0', pack(f))
redis.call('PEXPIREAT', record, int(now + ttl))
if epoch ~= '' then
  redis.call('HSET', record, '\0e', epoch, '\0u', ARGV[7])
  for _, each in ipairs(evicted) do redis.call('ZREM', user, each) end
  redis.call('ZADD', user, '-' .. epoch, 'e', int(now + ttl), f.handle .. string.sub(record, -24))
  keep(ttl)
end
apply(record, 11, f)
return {'OK', now, ttl, epoch, evicted}
"""),
    # KEYS record, u, new record; ARGV expected version or '', new nonce, how long the old id may lead on in
    # ms, 1 if the steps change anything, steps → OK now ttl version renew-at results | as save
    "renew": (LIVE + STEPS, r"""
local state, f = look()
if state ~= 'OK' then return {state, f.pointer} end
if ARGV[1] ~= '' and tonumber(ARGV[1]) ~= f.version then return {'CONFLICT'} end
local no = try(5)
if no then return {no} end
local fresh, nonce, ttl = KEYS[3], f.nonce, math.min(f.idle, f.left)
f.nonce, f.due, f.version = ARGV[2], math.max(0, now + f.renewal - f.created), (f.version + ARGV[4]) % 2^32
redis.call('DEL', fresh)
local all = redis.call('HGETALL', record)
for i = 1, #all, 1000 do redis.call('HSET', fresh, unpack(all, i, math.min(i + 999, #all))) end
redis.call('HSET', fresh, '\0', pack(f), '\0g', 0)
redis.call('PEXPIREAT', fresh, int(now + ttl))
local results = apply(fresh, 5, f)
redis.call('DEL', record)
redis.call('HSET', record, '\0p', string.sub(fresh, -24) .. ' ' .. nonce)
if f.grace then redis.call('HSET', record, '\0g', f.grace) end
redis.call('PEXPIREAT', record, int(now + math.min(tonumber(ARGV[3]), ttl)))
if f.epoch then
  redis.call('ZREM', user, f.member)
  redis.call('ZADD', user, int(now + ttl), f.handle .. string.sub(fresh, -24))
  keep(ttl)
end
return {'OK', now, ttl, f.version, f.created + f.due, results}
"""),
    # KEYS record, u; ARGV expected version or '', how long it is known to have ended in ms
    # → OK | CONFLICT | as load
    "destroy": (TIME + LOOK, r"""
local state, f = look()
if state == 'DAMAGED' then redis.call('DEL', record) end
if state ~= 'OK' then return {state, f.pointer} end
if ARGV[1] ~= '' and tonumber(ARGV[1]) ~= f.version then return {'CONFLICT'} end
redis.call('DEL', record)
if f.epoch then redis.call('ZREM', user, f.member) end
if tonumber(ARGV[2]) > 0 then
  redis.call('HSET', record, '\0p', '')
  redis.call('PEXPIREAT', record, int(now + ARGV[2]))
end
return {state}
"""),
    # KEYS any record, u; ARGV handle, 8 characters → OK members that are gone
    "revoke": ("", """
local gone = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], 0, '+inf')) do
  if string.sub(member, 1, 8) == ARGV[1] then
    redis.call('ZREM', KEYS[2], member)
    gone[#gone + 1] = member
  end
end
return {'OK', gone}
"""),
    # KEYS record to be kept, u; ARGV 1 if there is one, or 0 → OK members that are gone, epoch | MOVED
    # An index that is gone has no session alive. A full node cannot take a new epoch: then all of u goes
    "revoke_all": (TIME + LOOK, r"""
local score = redis.call('ZSCORE', user, 'e')
if not score then return {'OK', {}, ''} end
local epoch, state, f = int(math.max(1 - tonumber(score), now)), '', {}
if ARGV[1] == '1' then state, f = look() end
if state == 'MOVED' then return {state, f.pointer} end
local kept = state == 'OK' and f.epoch and f.member
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
if kept then redis.call('HSET', record, '\0e', epoch) end
return {'OK', gone, epoch}
"""),
    # KEYS any record, u → OK now members and scores
    "index": (TIME + PRUNE, """
prune()
return {'OK', now, redis.call('ZRANGEBYSCORE', user, 0, '+inf', 'WITHSCORES')}
"""),
    # KEYS records → OK, of each what it says of itself and the device, or ''
    "show": ("", r"""
local all = {}
for i, key in ipairs(KEYS) do
  local f = redis.call('HMGET', key, '\0', '\0d')
  all[i] = {f[1] or '', f[2] or ''}
end
return {'OK', all}
"""),
    # KEYS records of members that are gone, u last → OK
    "purge": ("", """
for i = 1, #KEYS - 1 do redis.call('DEL', KEYS[i]) end
return {'OK'}
"""),
}  # fmt: skip

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
    plain = "".join(BODIES[name])
    text = "#!lua" + (f" flags={FLAGS[name]}" if FLAGS[name] else "") + "\n" + plain
    return Script(name, text, *(_sha(text), plain, _sha(plain)))


def _sha(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


SCRIPTS = {name: _script(name) for name in BODIES}

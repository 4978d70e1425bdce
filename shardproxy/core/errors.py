"""Every error text that this project answers with, on one page, grouped by whose fault it is.

Pure. A text is the body of a RESP error: it begins with its code, has no "-" and no line end. Whatever Redis
has a text for has Redis 7's own. Names a node, a shard and a reason where there is one; never a key, a value
or a secret. What a request meets on the fast path the engine says with C strings of its own: ENGINE lists
them, and a test compares the list with the engine's sources. Why it does not start is in proxy/start_errors.
"""

from collections.abc import Iterable, Sequence


def shown(value: bytes, size: int = 128) -> str:
    """What a client sent, as Redis shows it in an error: up to a NUL, `size` bytes at most."""
    return value.partition(b"\0")[0][:size].decode(errors="surrogateescape")


# --- The client's: what it asked for is wrong --------------------------------------------------------------

SYNTAX = "ERR syntax error"
NOT_AN_INTEGER = "ERR value is not an integer or out of range"
NOT_AN_INT = "ERR value is out of range, value must between -2147483648 and 2147483647"
NEITHER_ZERO_NOR_ONE = "ERR value is out of range, value must between 0 and 1"
NOT_POSITIVE = "ERR value is out of range, must be positive"
NOPROTO = "NOPROTO unsupported protocol version"
PROTOCOL_VERSION = "ERR Protocol version is not an integer or out of range"
NO_PASSWORD_SET = (
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?"
)
WRONGPASS = "WRONGPASS invalid username-password pair or user is disabled."
HELLO_NOAUTH = (
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> "
    "<pass> option can be used to authenticate the client and select the RESP protocol version at the same "
    "time"
)
ACL_GENPASS = (
    "ERR ACL GENPASS argument must be the number of bits for the output password, "
    "a positive number up to 4096"
)
ACL_NO_FILE = (
    "ERR This Redis instance is not configured to use an ACL file. You may want to specify users via the ACL "
    "SETUSER command and then issue a CONFIG REWRITE (assuming you have a Redis configuration file set) in "
    "order to store users in the Redis configuration."
)
ACL_NOT_SAVED = (
    "ERR There was an error trying to save the ACLs. Please check the server logs for more information"
)
EXEC_NOPERM = (
    "NOPERM ACLs rules changed between the moment the transaction was accumulated and the EXEC call. "
    "This command is no longer allowed for the following reason: "
)
EXEC_REASONS = {  # by core/permit's verdict
    "command": "no permission to execute the command or subcommand",
    "key": "no permission to touch the specified keys",
    "channel": "no permission to access one of the channels used as arguments",
}
EXEC_LOGINS = "EXECABORT Transaction discarded because of: more logins in it than shardproxy follows"
ACL_DEFAULT_STAYS = "ERR The 'default' user cannot be removed"
ACL_NAME = "ERR Usernames can't contain spaces or null characters"
ACL_TOO_MANY = "ERR too many users: their rules together would be larger than shardproxy keeps"
CLIENT_NAME = "ERR Client names cannot contain spaces, newlines or special characters."
CLIENT_ID = "ERR Invalid client ID"
TOO_MANY_NAMES = "ERR too many command names: there are not so many commands"
TIMEOUT_NOT_AN_INTEGER = "ERR timeout is not an integer or out of range"
TIMEOUT_NEGATIVE = "ERR timeout is negative"
UNBLOCKED = "UNBLOCKED client unblocked via CLIENT UNBLOCK"
UNBLOCK_REASON = "ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR"
NO_SUCH_CLIENT = "ERR No such client"
KILL_ID = "ERR client-id should be greater than 0"
KILL_MAXAGE = "ERR maxage should be greater than 0"
PAUSE_MODE = "ERR CLIENT PAUSE mode must be WRITE or ALL"
MONITOR_DENIED = "ERR MONITOR isn't allowed for DENY BLOCKING client"
OVERFLOW = "ERR increment or decrement would overflow"
DECREMENT_OVERFLOW = "ERR decrement would overflow"
NOT_A_FLOAT = "ERR value is not a valid float"
NOT_FINITE = "ERR increment would produce NaN or Infinity"
OFFSET_RANGE = "ERR offset is out of range"
STRING_TOO_LONG = "ERR string exceeds maximum allowed size (proto-max-bulk-len)"
EXPIRE_NX_OTHERS = "ERR NX and XX, GT or LT options at the same time are not compatible"
EXPIRE_GT_LT = "ERR GT and LT options at the same time are not compatible"
DB_RANGE = "ERR DB index is out of range"
NO_SUCH_KEY = "ERR no such key"
MOVED_MEANWHILE = "TRYAGAIN others take from this list all the time: nothing was moved"


def expire_time(name: str) -> str:
    return f"ERR invalid expire time in '{name}' command"


def expire_option(option: bytes) -> str:
    return f"ERR Unsupported option {shown(option)}"


def no_group(key: bytes, group: bytes) -> str:
    """Redis's own words, which say them in full: they go back to who has named them, and nowhere else."""
    return f"NOGROUP No such key '{shown(key, len(key))}' or consumer group '{shown(group, len(group))}'"


def unknown_subcommand(container: str, sub: bytes) -> str:
    return f"ERR unknown subcommand '{shown(sub)}'. Try {container.upper()} HELP."


def wrong_arity(name: str) -> str:
    """name: as in the command table, "get" or "client|id"."""
    return f"ERR wrong number of arguments for '{name}' command"


def wrong_use(container: str, sub: bytes) -> str:
    """Of the right name, with too many arguments, or of none."""
    said = shown(sub)
    return f"ERR unknown subcommand or wrong number of arguments for '{said}'. Try {container.upper()} HELP."


def too_many_of_user(user: str) -> str:
    return f"ERR max number of clients of user '{user}' reached"


def exec_denied(verdict: str) -> str:
    """To who has logged in between MULTI and EXEC, and may not run what follows. verdict: of core/permit."""
    return EXEC_NOPERM + EXEC_REASONS.get(verdict, "no permission")


def acl_category(name: bytes) -> str:
    return f"ERR Unknown category '{shown(name)}'"


def acl_setuser(found: str, why: str) -> str:
    """found: the rule, unless it may be a password, which Redis would show."""
    return f"ERR Error in ACL SETUSER modifier '{found}': {why}"


def acl_unmatched(found: str) -> str:
    return f"ERR Unmatched parenthesis in acl selector starting at '{found}'."


def users_late(late: Iterable[str]) -> str:
    return f"ERR the users are changed, but {', '.join(late)} has not said so yet: see the log"


def acl_no_user(name: bytes) -> str:
    return f"ERR User '{shown(name)}' not found"


def acl_no_command(name: bytes) -> str:
    return f"ERR Command '{shown(name)}' not found"


def acl_dry(verdict: str, command: str, argument: bytes) -> str:
    """No error: what ACL DRYRUN says of a command that would be denied. verdict: of core/permit."""
    if verdict in ("key", "channel"):
        name = argument.decode(errors="surrogateescape")
        return f"This user has no permissions to access the '{name}' {verdict}"
    if verdict in ("by", "get"):
        return f"{verdict.upper()} option of SORT denied due to insufficient ACL permissions."
    return f"This user has no permissions to run the '{command}' command"


def hello_option(option: bytes) -> str:
    return f"ERR Syntax error in HELLO option '{shown(option)}'"


def client_type(name: bytes) -> str:
    return f"ERR Unknown client type '{shown(name)}'"


def no_such_user(name: bytes) -> str:
    return f"ERR No such user '{shown(name)}'"


def client_option(name: bytes) -> str:
    """Of CLIENT SETINFO."""
    return f"ERR Unrecognized option '{shown(name)}'"


def client_value(option: bytes) -> str:
    """Of CLIENT SETINFO."""
    return f"ERR {shown(option)} cannot contain spaces, newlines or special characters."


TOO_MANY_SUBSCRIPTIONS = "ERR more subscriptions than client_subscriptions allows"
ONE_REDIRECT = "ERR A client can only redirect to a single other client"
NO_REDIRECT = "ERR The client ID you want redirect to does not exist"
PREFIX_WITHOUT_BCAST = "ERR PREFIX option requires BCAST mode to be enabled"
SWITCHED_BCAST = (
    "ERR You can't switch BCAST mode on/off before disabling tracking for this client, "
    "and then re-enabling it with a different mode."
)
BCAST_WITH_OPT = "ERR OPTIN and OPTOUT are not compatible with BCAST"
BOTH_OPTS = "ERR You can't specify both OPTIN mode and OPTOUT mode"
SWITCHED_OPT = (
    "ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, "
    "and then re-enabling it with a different mode."
)
CACHING_WITHOUT_OPT = (
    "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT "
    "mode enabled"
)
CACHING_YES = "ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode."
CACHING_NO = "ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode."


def prefix_overlaps(prefix: bytes, which: str, other: bytes) -> str:
    return (
        f"ERR Prefix '{shown(prefix)}' overlaps with {which} prefix '{shown(other)}'. "
        "Prefixes for a single client must not overlap."
    )


NOT_LOCAL = (
    "NOPERM this changes the proxy for everybody: without a login with a password, only clients on this "
    "machine may, over the loopback interface or a unix socket"
)


INVALID_CURSOR = "ERR invalid cursor"
SCRIPT_FLUSH = "ERR SCRIPT FLUSH only support SYNC|ASYNC option"
SCRIPT_DEBUG = "ERR Use SCRIPT DEBUG YES/SYNC/NO"
NOT_DEBUGGER = "ERR the debugger of scripts needs a connection of its own: connect to a node"


def get_keys(reason: str) -> str:
    """reason: what CommandTable.keys_of raised."""
    return f"ERR {reason}"


# --- The operator's: a change that cannot be ---------------------------------------------------------------

NO_FILE = "ERR there is no file to load again: this proxy was given its configuration by a program"
NOT_TIDIED = (
    "ERR not reloaded: keys would move, and what they left behind when they moved before is still being "
    "deleted; try it again in a moment"
)
HANDED_OVER = "ERR another process has taken over: connect again, and ask that one"
NO_OWNER = "ERR the supervisor does not answer: try again, and see its log"


def not_reloaded(generation: int, mistakes: Sequence[str]) -> str:
    count = len(mistakes)
    return (
        f"ERR the configuration is refused, generation {generation} goes on: "
        f"{count} mistake{'s'[: count > 1]}: " + " | ".join(mistakes)
    )


def no_such_shard(name: str, known: Sequence[str]) -> str:
    return f"ERR no shard '{name[:128]}'; there are {', '.join(known)}"


def drain_durable(shard: str, pool: str) -> str:
    return (
        f"ERR pool '{pool}' is durable: without shard '{shard}' its keys would be looked for where "
        f"they are not. Copy them first; PROXY DRAIN {shard} FORCE does it nevertheless"
    )


def not_drained(reason: str) -> str:
    return f"ERR {reason}"


# --- Sessions' ---------------------------------------------------------------------------------------------

SESSIONS_OFF = "ERR sessions are off: [sessions] of shardproxy.toml names no pool"
SESSIONS_FLUSH = (
    "ERR this pool holds sessions: everybody would be logged out. allow_flush in [sessions] of "
    "shardproxy.toml permits it"
)


def session_denied(name: str) -> str:
    """As Redis says it, and what to do: whoever may run +@all may not run these."""
    return (
        f"NOPERM this user has no permissions to run the '{name}' command: sessions are not in +@all, "
        "a rule +@session gives them"
    )


def session_unfit(address: str, policy: str) -> str:
    return (
        f"SESSIONUNFIT node {address} has maxmemory-policy {policy}, which evicts sessions: "
        "noeviction, or a volatile-* policy"
    )


# --- The client's: memcached cannot do it -----------------------------------------------------------------

# {}: the node, "memcached shard 'a' at 10.0.0.7:11211"
MEMCACHED_EMPTY_KEY = "ERR an empty key is not possible on {}"
MEMCACHED_LONG_KEY = (
    "ERR the key is too long for {}: at most 250 bytes, or 186 with spaces or control characters in it"
)
MEMCACHED_TTL_RANGE = "ERR invalid expire time for {}: it keeps none after 2038-01-19"
MEMCACHED_BUSY = "TRYAGAIN others change this key on {} all the time: nothing was changed"
MEMCACHED_FULL = "OOM command not allowed when used memory > 'maxmemory': {} is full"


def memcached_too_large(limit: int) -> str:
    """limit: bytes, 0: not known."""
    most = f": an item, with its key and header, has at most {limit} bytes" if limit else ""
    return "ERR the value is too large for {}" + most


def not_asked(shard: str, address: str, timeout: float) -> str:
    """As the engine says it. timeout: seconds."""
    within = f"{round(timeout * 1000)} ms"
    return f"TIMEOUT shard '{shard}' at {address} could not be asked within {within}; the command has not run"


def memcached_keys(where: str) -> str:
    return (
        f"ERR {where} lists its keys only where the pool says memcached_keys = true: each time it looks "
        "through all that it has"
    )


def memcached_said(what: str) -> str:
    """A node answered a command of ours so."""
    return "ERR {} answers " + repr(what[:120])


# --- Ours: it could be answered one day --------------------------------------------------------------------


def not_supported(name: str, why: str) -> str:
    """name: as in the command table; why: the row's; one with a capital letter is the whole text."""
    if why[:1].isupper():
        return f"ERR {why}"
    return f"ERR '{name.upper().replace('|', ' ')}' is not supported yet" + (f": {why}" if why else "")


def not_on_memcached(name: str, shard: str) -> str:
    """name: as in the command table."""
    return (
        f"ERR '{name.upper().replace('|', ' ')}' is not possible on a memcached shard ('{shard}'): "
        "its values are strings, one key at a time"
    )


# --- A node's ----------------------------------------------------------------------------------------------

NO_SHARDS = "SHARDDOWN no shard is there to ask"
SWAP_OUT = "SHARDDOWN a shard is out: its databases could not be swapped with the others'"


def partly(name: str, failed: Sequence[tuple[str, str]]) -> str:
    """What every node should have done, and some have not; name: the command's."""
    said = "; ".join(f"'{shard}': {why[:200]}" for shard, why in failed)
    return f"ERR {name} was done, but not on shard{'s'[: len(failed) > 1]} {said}"


def differing(name: str, shards: Sequence[str]) -> str:
    """Nodes that should have answered the same."""
    return (
        f"ERR the nodes do not answer {name} alike: shard{'s'[: len(shards) > 1]} {', '.join(shards)} differ"
    )


def large_cursor(shard: str) -> str:
    return f"ERR shard '{shard}' gave a cursor that is too large to be passed on: PROXY NODE {shard} SCAN"


def proxys_own(option: str) -> str:
    """Of CONFIG SET: Redis's words, then ours."""
    return (
        f"ERR CONFIG SET failed (possibly related to argument '{option}') - it is the proxy's own: "
        "set it in shardproxy.toml"
    )


def not_through(name: str) -> str:
    """Of PROXY NODE."""
    return f"ERR PROXY NODE cannot run {name.upper()}: it changes the connection. Connect to the node itself"


def debug(name: str) -> str:
    return f"ERR DEBUG {shown(name.encode()).upper()} is not passed to the nodes; PROXY NODE asks one"


def not_memcached(said: bytes) -> str:
    return f"not a memcached server: it answered {said[:60]!r}"


def not_redis(said: bytes) -> str:
    """A reason for a node's state. said: the beginning of what it sent."""
    return f"not a Redis server: it answered {said[:60]!r}"


def tracking_needs_resp3(shard: str) -> str:
    return f"ERR CLIENT TRACKING needs nodes that speak RESP3: shard {shard!r} speaks RESP2 only"


TRACKING_INCOMPLETE = "SHARDDOWN not every node tells of changes: CLIENT TRACKING with BCAST needs them all"


def not_subscribed(shard: str, address: str, why: str, timeout: float) -> str:
    """why: its connection is not there; empty: it is, and says nothing."""
    if why:
        return f"SHARDDOWN shard '{shard}' at {address} is down: {why}"
    return f"TIMEOUT shard '{shard}' at {address} did not confirm the subscription within {timeout:g} s"


def bad_reply(frame: bytes) -> str:
    said = frame[:60].partition(b"\r")[0].decode("ascii", "replace")
    return f"ERR a node answered something else than this command answers: {said!r}"


# --- Ours: a bug -------------------------------------------------------------------------------------------

INTERNAL = "ERR internal error: see the log of shardproxy"


# --- The engine's own, {} where it puts something in -------------------------------------------------------

ENGINE = (
    # the client's: what it asked for is wrong
    "ERR {}",  # what of its bytes is not RESP, or over a limit; the connection is closed
    "ERR unknown command '{}', with args beginning with: ",
    "ERR unknown subcommand '{}'. Try {} HELP.",
    "ERR wrong number of arguments for '{}' command",
    "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are "
    "allowed in this context",
    "CROSSSLOT Keys in request don't hash to the same slot",
    "ERR MULTI calls can not be nested",
    "ERR EXEC without MULTI",
    "ERR DISCARD without MULTI",
    "ERR WATCH inside MULTI is not allowed",
    "ERR Command not allowed inside a transaction",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "EXECABORT Transaction discarded because of previous errors.",
    "EXECABORT Transaction discarded because of: {}",
    "EXECABORT Transaction discarded because its keys have moved to another shard; try it again.",
    "ERR the transaction is larger than max_request",
    # the client's: its user may not
    "NOAUTH Authentication required.",
    "NOPERM this user has no permissions to run the '{}' command",
    "NOPERM this user has no permissions to access one of the keys used as arguments",
    "NOPERM this user has no permissions to access one of the channels used as arguments",
    "ERR BY option of SORT denied due to insufficient ACL permissions.",
    "ERR GET option of SORT denied due to insufficient ACL permissions.",
    "NOPERM '{}' of a user who may not do everything: a node would run the script without this user's rules. "
    "If its scripts are to be trusted: user_scripts = 'trust' in shardproxy.toml",
    # the client's: it is not to be served
    "DENIED shardproxy is running in protected mode because no users are configured: only clients on this "
    "machine are served. Connect over the loopback interface or a unix socket, or set protected_mode = false "
    "in shardproxy.toml if everybody who can reach this port may use it.",
    "ERR max number of clients reached",
    "ERR max number of clients of this address reached",
    "DENIED the address of this client is not in the `allow` list of shardproxy",
    "DENIED this port takes connections from load balancers in `proxy_protocol_from` only",
    "ERR Protocol error: this port speaks TLS, and what came is plaintext",
    # ours: it could be answered one day
    "ERR '{}' is not supported inside MULTI",
    "ERR '{}' with a BY or GET pattern reads keys of other shards: not supported",
    "ERR '{}' without a key is not supported yet: it says no shard",
    "ERR transactions are not possible on a memcached shard ('{}')",
    "ERR an empty key is not possible on memcached shard '{}' at {}",
    "ERR the key is too long for memcached shard '{}' at {}: at most {} bytes, or {} with spaces or control "
    "characters in it",
    "ERR the value is too large for memcached shard '{}' at {}: an item, with its key and header, has at "
    "most {} bytes",
    # a node's: (shard, address, ...)
    "OOM command not allowed when used memory > 'maxmemory': shard '{}' at {} is full",
    "ERR shard '{}' at {} answers '{}'",
    "ERR shard '{}' at {} has refused it",
    "SHARDDOWN shard '{}' at {} is down: {}",
    "SHARDDOWN shard '{}' at {} is down: the connection for its invalidations is not there yet",
    "SHARDDOWN its shard is down, and its keys have no other place in common",
    "ERR the reply is too large to be made RESP3 of: shard '{}' at {} speaks RESP2 only",
    "OVERLOADED shard '{}' at {}: {} private connections are in use",
    "OVERLOADED shard '{}' at {}: {} bytes wait for it",
    "OVERLOADED shard '{}' at {}: {} requests wait for it, more than it answers in time",
    "TIMEOUT shard '{}' at {} could not be asked within {} ms; the command has not run",
    "TIMEOUT shard '{}' at {} did not answer within {} ms; the command may still run",
    "UNKNOWN outcome: shard '{}' at {} was lost before it answered ({}); the command may have run",
    # ours
    "ERR internal error: see the log of shardproxy",
    "ERR out of memory",
    "ERR the reply of a node is too large",
    "ERR the connection was closed before it answered",
    "ERR the connection is closed",
)

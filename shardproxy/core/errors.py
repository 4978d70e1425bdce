"""Every error text that this project answers with, on one page, grouped by whose fault it is.

Pure. A text is the body of a RESP error: it begins with its code, has no "-" and no line end. Whatever Redis
has a text for has Redis 7's own. Names a node, a shard and a reason where there is one; never a key, a value
or a secret. The engine has C strings of its own for those of them that a request meets on the fast path.
"""

from collections.abc import Sequence


def shown(value: bytes, size: int = 128) -> str:
    """What a client sent, as Redis shows it in an error: up to a NUL, `size` bytes at most."""
    return value.partition(b"\0")[0][:size].decode(errors="surrogateescape")


# --- The client's: what it asked for is wrong --------------------------------------------------------------

SYNTAX = "ERR syntax error"
NOT_AN_INTEGER = "ERR value is not an integer or out of range"
NOT_AN_INT = "ERR value is out of range, value must between -2147483648 and 2147483647"
CROSSSLOT = "CROSSSLOT Keys in request don't hash to the same slot"
NOPROTO = "NOPROTO unsupported protocol version"
PROTOCOL_VERSION = "ERR Protocol version is not an integer or out of range"
NO_PASSWORD_SET = (
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?"
)
WRONGPASS = "WRONGPASS invalid username-password pair or user is disabled."
CLIENT_NAME = "ERR Client names cannot contain spaces, newlines or special characters."
CLIENT_ID = "ERR Invalid client ID"
DB_RANGE = "ERR DB index is out of range"
MAX_CLIENTS = "ERR max number of clients reached"


def unknown_command(args: Sequence[bytes]) -> str:
    """args: the whole command, its name first."""
    beginning = ""
    for arg in args[1:]:
        if len(beginning) >= 128:
            break
        beginning += f"'{shown(arg, 128 - len(beginning))}' "
    return f"ERR unknown command '{shown(args[0])}', with args beginning with: {beginning}"


def unknown_subcommand(container: str, sub: bytes) -> str:
    return f"ERR unknown subcommand '{shown(sub)}'. Try {container.upper()} HELP."


def wrong_arity(name: str) -> str:
    """name: as in the command table, "get" or "client|id"."""
    return f"ERR wrong number of arguments for '{name}' command"


def hello_option(option: bytes) -> str:
    return f"ERR Syntax error in HELLO option '{shown(option)}'"


def client_type(name: bytes) -> str:
    return f"ERR Unknown client type '{shown(name)}'"


def client_option(name: bytes) -> str:
    """Of CLIENT SETINFO."""
    return f"ERR Unrecognized option '{shown(name)}'"


def client_value(option: bytes) -> str:
    """Of CLIENT SETINFO."""
    return f"ERR {shown(option)} cannot contain spaces, newlines or special characters."


def get_keys(reason: str) -> str:
    """reason: what CommandTable.locate_keys raised."""
    return f"ERR {reason}"


# --- The client's: it is not to be served ------------------------------------------------------------------

PROTECTED_MODE = (
    "DENIED shardproxy is running in protected mode: it has no users configured, so it serves only clients "
    "of its own machine, over the loopback interface or a unix socket. To serve others, on a network that "
    'you trust, set "protected_mode = false" in shardproxy.toml.'
)
HTTP_REQUEST = (
    "ERR this is an HTTP request, and shardproxy speaks RESP, as Redis does; the connection is closed, since "
    "it may be an attack over a browser"
)

# --- Ours: it could be answered one day --------------------------------------------------------------------

DATABASES = "ERR SELECT is not supported yet for databases other than 0: shardproxy serves database 0 only"


def not_supported(name: str, why: str) -> str:
    """name: as in the command table; why: the row's."""
    return f"ERR '{name.upper().replace('|', ' ')}' is not supported yet" + (f": {why}" if why else "")


# --- A node's ----------------------------------------------------------------------------------------------


def shard_down(shard: str, address: str, reason: str) -> str:
    return f"SHARDDOWN shard '{shard}' at {address}: {reason}"


def timed_out(shard: str, address: str, seconds: float) -> str:
    return f"TIMEOUT shard '{shard}' at {address} did not answer within {seconds:g} s"


def unknown_outcome(shard: str, address: str) -> str:
    return (
        f"UNKNOWN the connection to shard '{shard}' at {address} was lost after the request was sent: "
        "it may have been executed, or not"
    )


def not_redis(said: bytes) -> str:
    """A reason for a node's state. said: the beginning of what it sent."""
    return f"not a Redis server: it answered {said[:60]!r}"


# --- Ours: a bug -------------------------------------------------------------------------------------------

INTERNAL = "ERR internal error of shardproxy; its log says more"

# --- The operator's: shardproxy cannot start ---------------------------------------------------------------


def port_in_use(address: str) -> str:
    return (
        f"cannot listen on {address}: another program does. Stop it (`ss -ltnp` names it), or listen "
        'elsewhere: listen = ["HOST:PORT"] in shardproxy.toml, port 0 for any free one'
    )


def socket_in_use(address: str) -> str:
    return f"cannot listen on {address}: another program does. Stop it, or give another path"


def not_a_socket(address: str) -> str:
    return f"cannot listen on {address}: that file is not a socket. Remove it, or give another path"


def cannot_listen(address: str, reason: str) -> str:
    return f"cannot listen on {address}: {reason}"


def worker_gave_up(slot: int, how: str) -> str:
    return f"worker {slot} ended before it was ready ({how}); the log above says why"

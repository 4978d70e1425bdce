"""How values are written in shardproxy.toml: sizes, durations, addresses, names; both ways, and nothing else.

A reader takes what TOML gave and returns what the records hold. What it does not accept raises ValueError
whose text says what is allowed, never what was found: that may be a password in an address.
"""

import ipaddress
import json
import re
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from msgspec import Meta

SIZE_UNITS = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}
DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZE = 'a size such as "64kb", "1.5mb" or 4096 (bytes)'
DURATION = 'a duration such as "500ms", "1s" or "1m30s"'
HOST_PORT = '"HOST:PORT" or "[IPV6]:PORT"'
LISTEN = '"HOST:PORT", "[IPV6]:PORT", "tls://HOST:PORT" or "unix:///PATH?mode=0660"; "proxy+" before it or "proxy://"'
NODE = (
    '"redis://HOST:PORT", "rediss://HOST:PORT", "memcached://HOST:PORT", "memcacheds://HOST:PORT", '
    '"unix:///PATH" or "memcached+unix:///PATH"'
)
PORTS = {"redis": 6379, "rediss": 6379, "memcached": 11211, "memcacheds": 11211}  # s: over TLS
NETWORK = 'an address or a network such as "10.0.0.0/8" or "::1"'
PASSWORD = "a password in quotes, not empty"
HASH_TAG = 'two characters such as "{}", "" for none, or "auto"'

# Compiled when they are used: a program that imports the client may need none
_SIZE = r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(?:i?b)?"
_DURATION_PART = r"(\d{1,15}(?:\.\d{1,15})?)\s*(us|ms|s|m|h|d)\s*"
_HOST = r"[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?\]"


class Secret:
    """A password that shows itself only when asked to."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def read_secret(value: object) -> Secret:
    if not isinstance(value, str) or not value:
        raise ValueError(PASSWORD)
    return Secret(value)


def matching(pattern: str, allowed: str) -> dict[str, Any]:
    """What reads text that matches as a whole."""

    def read(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(allowed)
        return value

    return {"read": read, "allowed": allowed}


def read_size(value: object) -> int:
    """Bytes: "1kb" is 1024, a bare number is bytes; "MB" and "MiB" are the same."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(_SIZE, value.strip().lower(), re.ASCII) if isinstance(value, str) else None
    if not match:
        raise ValueError(SIZE)
    return int(float(match[1]) * SIZE_UNITS[match[2] + "b"])


def write_size(size: int) -> str:
    """The largest unit that divides it: 1048576 → "1mb"."""
    unit = max(
        (unit for unit, factor in SIZE_UNITS.items() if size % factor == 0), key=SIZE_UNITS.__getitem__
    )
    return f"{size // SIZE_UNITS[unit]}{unit}" if size else "0b"


def read_fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a part of 1 such as 0.5")
    return float(value)


def read_duration(value: object) -> float:
    """Seconds. A bare number names no unit, so only 0 is taken as one."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    text = value.strip().lower() if isinstance(value, str) else ""
    parts = list(re.finditer(_DURATION_PART, text, re.ASCII))
    if not parts or "".join(part[0] for part in parts) != text:
        raise ValueError(DURATION)
    return float(sum(float(part[1]) * DURATION_UNITS[part[2]] for part in parts))


def write_duration(seconds: float) -> str:
    """The largest unit that gives a whole number, minutes at most below ten: 90.0 → "90s", 300.0 → "5m"."""
    for unit, factor in reversed(DURATION_UNITS.items()):
        count = round(seconds / factor, 6)
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


class Door(NamedTuple):
    """What an address in `listen` says."""

    address: str  # "HOST:PORT" or "/PATH"
    tls: bool = False
    proxied: bool = False  # a PROXY header comes first
    mode: int | None = None  # of the file of a unix socket; None: as the umask has it


def door(listen: str) -> Door:
    """Takes apart what read_listen has accepted."""
    proxied, rest = listen.startswith("proxy"), listen
    if proxied:
        rest = (
            listen.removeprefix("proxy://")
            if listen.startswith("proxy://")
            else listen.removeprefix("proxy+")
        )
    if rest.startswith("unix://"):
        path, _, mode = rest.removeprefix("unix://").partition("?mode=")
        return Door(path, False, proxied, int(mode, 8) if mode else None)
    return Door(rest.removeprefix("tls://"), rest.startswith("tls://"), proxied)


def read_listen(value: object) -> str:
    """Where the proxy listens: see LISTEN. Port 0: any free one."""
    if not isinstance(value, str):
        raise ValueError(LISTEN)
    before = "proxy+" if value.startswith("proxy+") else ""
    rest = value.removeprefix(before)
    scheme = next((each for each in ("unix://", "tls://", "proxy://") if rest.startswith(each)), "")
    rest = rest.removeprefix(scheme)
    if before and scheme not in ("unix://", "tls://"):
        raise ValueError(LISTEN)
    if scheme == "unix://":
        if not re.fullmatch(r"/[^\0?]+(\?mode=0?[0-7]{3})?", rest):
            raise ValueError(LISTEN)
        return value
    return before + scheme + _host_port(rest, LISTEN, lowest=0)


def read_network(value: object) -> str:
    try:
        return str(ipaddress.ip_network(str(value), strict=False))
    except ValueError:
        raise ValueError(NETWORK) from None


def read_admin(value: object) -> str:
    return _host_port(value, HOST_PORT, lowest=0)


def read_node(value: object) -> str:
    """A node's URL without its credentials, the port always written: "redis://HOST:PORT" or "unix:///PATH"."""
    scheme, _, rest = value.partition("://") if isinstance(value, str) else ("", "", "")
    if scheme in ("unix", "memcached+unix") and re.fullmatch(r"/[^\0]+", rest):
        return f"{scheme}://{rest}"
    host, _, database = rest.rpartition("@")[2].partition("/")
    if scheme not in PORTS or database not in ("", "0"):
        raise ValueError(f"{NODE}, database 0" if scheme in PORTS else NODE)
    has_port = ":" in host.rpartition("]")[2]
    return f"{scheme}://" + _host_port(host if has_port else f"{host}:{PORTS[scheme]}", NODE)


def split_login(url: str) -> tuple[str, str, str]:
    """A node's URL → (the URL without its credentials, username, password)."""
    scheme, mark, rest = url.partition("://")
    login, at, host = rest.rpartition("@")
    if not mark or not at:
        return url, "", ""
    username, _, password = login.partition(":")
    return f"{scheme}://{host}", unquote(username), unquote(password)


def address_of(url: str) -> str:
    """The address in a node's URL: "HOST:PORT", or "/PATH" of a unix socket."""
    parts = urlsplit(url)
    return parts.netloc or parts.path


def is_local(listen: str) -> bool:
    """Whether only this machine can reach it: a loopback address or a unix socket."""
    return door(listen).address.startswith(("127.", "localhost:", "[::1]:", "/"))


def toml_value(value: object) -> str:
    """A plain value as TOML. A JSON string is a TOML basic string, once nothing is escaped as surrogates."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False)


def toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


def shown(key: str, value: object) -> str:
    """A value that was found, for a message: no password, nothing long."""
    if "password" in key and isinstance(value, str):
        return "a value that is not shown"
    if isinstance(value, str):
        scheme, mark, rest = value.partition("://")
        _, at, host = (rest if mark else value).rpartition("@")
        value = (scheme + mark if mark else "") + ("***@" if at else "") + host.partition("?")[0]
        return toml_value(value if len(value) <= 80 else value[:77] + "...")
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    return toml_value(value) if isinstance(value, (bool, int, float)) else str(value)


def _host_port(value: object, allowed: str, lowest: int = 1) -> str:
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if (
        not re.fullmatch(_HOST, host)
        or not re.fullmatch(r"[0-9]{1,5}", port)
        or not lowest <= int(port) <= 65535
    ):
        raise ValueError(allowed)
    return f"{host}:{int(port)}"


# The types of options: what msgspec checks, and how each is read and written.
_SIZES: dict[str, Any] = {
    "extra": {"read": read_size, "write": write_size, "allowed": SIZE},
    "extra_json_schema": {"type": ["string", "integer"]},
}
_DURATIONS: dict[str, Any] = {
    "extra": {"read": read_duration, "write": write_duration, "allowed": DURATION},
    "extra_json_schema": {"type": "string"},
    "le": 365 * 86400,
}
Count = Annotated[int, Meta(ge=1, le=10**9)]
Fraction = Annotated[
    float, Meta(ge=0.0, le=1.0, extra={"read": read_fraction, "allowed": "a part of 1 such as 0.5"})
]
Size = Annotated[int, Meta(ge=1, le=1 << 40, **_SIZES)]
SizeOrNone = Annotated[int, Meta(ge=0, le=1 << 40, **_SIZES)]
Duration = Annotated[float, Meta(ge=0, **_DURATIONS)]
Timeout = Annotated[float, Meta(ge=0.001, **_DURATIONS)]
Listen = Annotated[str, Meta(extra={"read": read_listen, "allowed": LISTEN})]
Network = Annotated[str, Meta(extra={"read": read_network, "allowed": NETWORK})]
ServerName = Annotated[
    str, Meta(extra=matching(r"[A-Za-z0-9_.*:-]{1,253}", "a host name"), examples=["redis.example"])
]
Ciphers = Annotated[
    str,
    Meta(extra=matching(r"[!-~]+", "a list of OpenSSL's, such as ECDHE+AESGCM"), examples=["ECDHE+AESGCM"]),
]
PATH = matching(r"/[^\0]+", "an absolute path")
PemPath = Annotated[str, Meta(extra=PATH, examples=["/etc/shardproxy/tls.pem"])]
KeyPath = Annotated[str, Meta(extra=PATH, examples=["/etc/shardproxy/tls.key"])]
CaPath = Annotated[str, Meta(extra=PATH, examples=["/etc/shardproxy/ca.pem"])]
Hook = Annotated[
    str,
    Meta(
        extra=matching(r"https?://[^\s]+|/[^\0]+", '"http://…", "https://…" or "/PATH" of a program')
        | {"secret_path": True},  # who knows the whole of such a URL may use it
        examples=["http://127.0.0.1:8080/shardproxy"],
    ),
]
Admin = Annotated[str, Meta(extra={"read": read_admin, "allowed": HOST_PORT}, examples=["127.0.0.1:9380"])]
NodeUrl = Annotated[
    str, Meta(extra={"read": read_node, "allowed": NODE}, examples=["redis://127.0.0.1:7001"])
]
HashTag = Annotated[str, Meta(extra=matching(r"auto|[!-~]{2}|", HASH_TAG))]
KeyHash = Literal[
    "auto", "xxh64", "one_at_a_time", "md5", "crc16", "crc32", "crc32a", "fnv1_64", "fnv1a_64", "fnv1_32",
    "fnv1a_32", "hsieh", "murmur", "jenkins", "ch3",
]  # fmt: skip
Username = Annotated[str, Meta(extra=matching(r"\S+", "a name, no spaces"), examples=["app"])]
Password = Annotated[
    Secret, Meta(extra={"read": read_secret, "write": lambda _: "...", "allowed": PASSWORD}, examples=["..."])
]
VARIABLE = matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")
Variable = Annotated[str, Meta(extra=VARIABLE, examples=["REDIS_PASSWORD"])]
KeyVariable = Annotated[str, Meta(extra=VARIABLE, examples=["TLS_KEY_PASSWORD"])]
FilePath = Annotated[str, Meta(extra=PATH, examples=["/run/secrets/redis"])]
KeyFilePath = Annotated[str, Meta(extra=PATH, examples=["/run/secrets/tls_key"])]

"""How values are written in shardproxy.toml: sizes, durations, addresses; both ways, and nothing else.

A reader takes what TOML gave and returns what the records hold; what it does not accept raises ValueError
whose text says what is allowed, never what was found (it may be a password in an address).
"""

import re
from urllib.parse import unquote, urlsplit

SIZE_UNITS = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}
DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZE = 'a size such as "64kb", "1.5mb" or 4096 (bytes)'
DURATION = 'a duration such as "500ms", "1s" or "1m30s"'
LISTEN = '"HOST:PORT", "[IPV6]:PORT" or "unix:///PATH"'
ADMIN = '"HOST:PORT" or "[IPV6]:PORT"'
NODE = '"redis://HOST:PORT" or "unix:///PATH"'

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d)\s*")
_HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?\]")


def read_size(value: object) -> int:
    """Bytes: "64mb" is 64 × 1024², a bare number is bytes; upper case and "MiB" are the same."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if not match:
        raise ValueError(SIZE)
    return int(float(match[1]) * SIZE_UNITS[match[2] + "b"])


def write_size(size: int) -> str:
    unit, factor = next(
        pair
        for pair in reversed(SIZE_UNITS.items())
        if size % pair[1] == 0 and size >= pair[1] or pair[1] == 1
    )
    return f"{size // factor}{unit}"


def read_duration(value: object) -> float:
    """Seconds. A bare number says no unit, so only 0 is taken as one."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    text = value.strip().lower() if isinstance(value, str) else ""
    parts = list(_DURATION_PART.finditer(text))
    if not parts or "".join(part[0] for part in parts) != text:
        raise ValueError(DURATION)
    return float(sum(float(part[1]) * DURATION_UNITS[part[2]] for part in parts))


def write_duration(seconds: float) -> str:
    for unit, factor in reversed(DURATION_UNITS.items()):
        count = round(seconds / factor, 6)
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds:g}s"


def read_listen(value: object) -> str:
    """Where the proxy listens: "HOST:PORT" (port 0: any free one) or "unix:///PATH"."""
    if isinstance(value, str) and value.startswith("unix:///") and len(value) > 8:
        return value
    return _host_port(value, LISTEN, lowest=0)


def read_admin(value: object) -> str:
    return _host_port(value, ADMIN, lowest=0)


def read_node(value: object) -> str:
    """A node's URL without credentials, its port always written: "redis://HOST:PORT" or "unix:///PATH"."""
    if not isinstance(value, str):
        raise ValueError(NODE)
    scheme, mark, rest = value.partition("://")
    if not mark:
        try:
            raise ValueError(f'"redis://{_host_port(value, NODE)}": an address with its scheme')
        except ValueError as error:
            raise ValueError(str(error)) from None
    if scheme in NOT_YET:
        raise ValueError(f"{NODE}: {NOT_YET[scheme]}, which is not supported yet")
    if scheme == "unix" and rest.startswith("/") and len(rest) > 1:
        return value
    host, _, path = rest.rpartition("@")[2].partition("/")
    if scheme != "redis" or path not in ("", "0"):
        raise ValueError(f"{NODE}; no database but 0" if scheme == "redis" and path.isdigit() else NODE)
    bare = ":" not in host.rpartition("]")[2]
    return "redis://" + _host_port(f"{host}:6379" if bare else host, NODE)


NOT_YET = {"rediss": "TLS to nodes", "memcached": "a memcached shard", "memcacheds": "a memcached shard"}


def split_login(url: str) -> tuple[str, str, str]:
    """A node's URL → (the URL without its credentials, username, password)."""
    scheme, mark, rest = url.partition("://")
    login, at, host = rest.rpartition("@")
    if not mark or not at:
        return url, "", ""
    username, _, password = login.partition(":")
    return f"{scheme}://{host}", unquote(username), unquote(password)


def address_of(url: str) -> str:
    """ "redis://HOST:PORT" → "HOST:PORT"; "unix:///PATH" → "/PATH"."""
    parts = urlsplit(url)
    return parts.netloc or parts.path


def _host_port(value: object, allowed: str, lowest: int = 1) -> str:
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not _HOST.fullmatch(host) or not re.fullmatch(r"\d{1,5}", port) or not lowest <= int(port) <= 65535:
        raise ValueError(allowed)
    return f"{host}:{int(port)}"

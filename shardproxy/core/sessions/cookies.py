"""The session's cookie on its way: which one a request may bring, how it is sent, the headers beside it.

What is in the cookie (id and tag) is not known here. Pure: schemes, hosts and headers are arguments.

    https                                 `__Host-id`; Secure, HttpOnly, SameSite=Lax, Path=/
    https, `domain` set                   `__Secure-id`, the same, with Domain
    http to this machine, or a test host  `id`, without Secure: for development
    other http                            none, neither taken nor given

Each is taken only where it is given, so a cookie planted over http never counts over https.
"""

import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Literal

import msgspec

from shardproxy.core.networks import Networks

# What test clients and developers call their servers: Starlette and Django, httpx; RFC 6761; "any" address
TEST_HOSTS = frozenset({"testserver", "test", "localhost", "0.0.0.0"})
TEST_DOMAINS = (".localhost", ".test")
# A cookie of ours is found twice only when somebody plays with it; of a flood of them these are looked at
CANDIDATES = 4

PLAIN = (
    "sessions: this is http to a local or test host, so the cookie goes without Secure;"
    " over https it would be {name}"
)
NO_COOKIE = (
    "sessions: a request came over http from outside, so it has no session. Serve over https; if a load"
    " balancer ends TLS before this server, name its address in trusted_proxies and let it send"
    " X-Forwarded-Proto"
)


class CookieRules(msgspec.Struct, frozen=True):
    """How the cookie is sent. Raises ValueError for what no browser would keep.

    name: without its prefix. samesite: "None" only if other sites must post to this one (docs/sessions.md,
    form_post). domain: "" for this host alone; "example.com" shares it with every subdomain, which all can
    then plant cookies here. clear_site_data: sent with a logout; "" for nothing.
    """

    name: str = "id"
    samesite: Literal["Lax", "Strict", "None"] = "Lax"
    domain: str = ""
    clear_site_data: str = '"cache", "cookies", "storage"'

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name) or self.name.startswith("__"):
            raise ValueError(
                f"cookie name {self.name!r}: letters, digits, _ and -, and no prefix: it is added"
            )
        if self.samesite not in ("Lax", "Strict", "None"):
            raise ValueError(f"samesite {self.samesite!r}: Lax, Strict or None")
        if self.domain and not re.fullmatch(r"\.?[a-z0-9-]+(\.[a-z0-9-]+)+", self.domain):
            raise ValueError(
                f"cookie domain {self.domain!r}: a host name with a dot, in lower case, or nothing"
            )
        if not re.fullmatch(r"[\x20-\x7e]*", self.clear_site_data):
            raise ValueError("clear_site_data: not the value of a header")


class Carrier:
    """The cookie of one kind of connection: its name, and what is sent after the value."""

    def __init__(self, rules: CookieRules, secure: bool) -> None:
        domain = rules.domain if secure else ""
        prefix = "__Secure-" if domain else "__Host-"
        self.secure = secure
        self.name = prefix + rules.name if secure else rules.name
        # without Secure, browsers drop SameSite=None
        samesite = rules.samesite if secure or rules.samesite != "None" else "Lax"
        self._rest = "; Path=/" + (f"; Domain={domain}" if domain else "")
        self._rest += ("; Secure" if secure else "") + f"; HttpOnly; SameSite={samesite}"
        self._found = re.compile(
            rf"(?:\A|;)[ \t]*{re.escape(self.name)}=([\w.~-]{{1,256}})[ \t]*(?=;|\Z)", re.ASCII
        )

    def values(self, header: str) -> list[str]:
        """What a Cookie header has under this name, each once, the first few; whatever else is in it.

        header: of several, joined by "; ". Values that cannot be ours are left out.
        """
        if self.name not in header:
            return []
        return list(dict.fromkeys(self._found.findall(header)))[:CANDIDATES]

    def set(self, value: str, max_age: int | None = None) -> str:
        """A Set-Cookie header; max_age in seconds, None: until the browser ends."""
        kept = "" if max_age is None else f"; Max-Age={max_age}"
        return f"{self.name}={value}{kept}{self._rest}"

    def drop(self) -> str:
        """A Set-Cookie header that makes the browser forget it."""
        return f"{self.name}=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT{self._rest}"


class Carriers:
    """Which cookie belongs to a request. trusted: whose X-Forwarded-Proto is believed: networks, "unix"."""

    def __init__(self, rules: CookieRules, trusted: Sequence[str] = ()) -> None:
        self.secure, self.plain = Carrier(rules, True), Carrier(rules, False)
        self._unix = "unix" in trusted
        self._trusted = Networks(text for text in trusted if text != "unix") if trusted else None

    def scheme(self, scheme: str, forwarded: str, peer: str) -> str:
        """What the visitor used: "https" or "http".

        scheme: as this server sees it. forwarded: X-Forwarded-Proto; of several the last counts, for that is
        what the proxy nearest to us has seen. peer: the other end's address, "" for a unix socket.
        """
        if forwarded and self._trusted is not None and self._trusts(peer):
            scheme = forwarded.rpartition(",")[2].strip().lower()
        return "https" if scheme in ("https", "wss") else "http"

    def address(self, peer: str, forwarded: str) -> str:
        """The visitor's own, as far as it is known: the last of X-Forwarded-For that no trusted proxy has."""
        for hop in reversed(forwarded.split(",") if forwarded else []):
            if self._trusted is None or not self._trusts(peer):
                break
            if not (hop := hop.strip()):
                break
            peer = hop
        return peer[:64]

    def _trusts(self, peer: str) -> bool:
        if not peer:
            return self._unix
        try:
            address = ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        return self._trusted is not None and self._trusted.holds(address.packed)

    def carrier(self, scheme: str, host: str) -> Carrier | None:
        """None: no cookie here. scheme: as `scheme` gives it; host: a Host header."""
        if scheme == "https":
            return self.secure
        return self.plain if is_local(host) else None


def is_local(host: str) -> bool:
    """Is this Host header one of this very machine, or of a test? With or without a port."""
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name in TEST_HOSTS or name.endswith(TEST_DOMAINS):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


_OF_READING = {"Vary": "Cookie", "Cache-Control": "private"}


def headers_beside(
    vary: str, cache_control: str, *, read: bool, cookie: bool, cleared: str = ""
) -> Mapping[str, str]:
    """The headers that a response needs for its session's sake; each replaces what is there.

    vary, cache_control: the response's own, "" for none. read: somebody looked into the session. cookie:
    there is a Set-Cookie of ours. cleared: what a logout clears, for Clear-Site-Data.
    """
    if not (vary or cache_control or cookie or cleared):  # as usual
        return _OF_READING if read else {}
    found: dict[str, str] = {}
    if read or cookie:
        names = [name.strip().lower() for name in vary.split(",")]
        if "cookie" not in names and "*" not in names:
            found["Vary"] = f"{vary}, Cookie" if vary.strip() else "Cookie"
    if cookie:
        found["Cache-Control"] = "no-store"
    elif read and not cache_control:
        found["Cache-Control"] = "private"
    if cleared:
        found["Clear-Site-Data"] = cleared
    return found

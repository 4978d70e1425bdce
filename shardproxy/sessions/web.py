"""A request's session on its way in and out: what all adapters share. Knows no framework, and asks no store.

arrived   scheme, host, cookies of a request → `Visit`: which cookie counts, and what device it is
leaving   what the response gets for its session's sake: Set-Cookie, and the headers beside it
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from shardproxy.core.sessions.cookies import (
    NO_COOKIE,
    PLAIN,
    Carrier,
    Carriers,
    CookieRules,
    headers_beside,
)
from shardproxy.sessions.store import BaseStore, BoundSession

log = logging.getLogger("shardproxy.sessions")

REFUSED = b"The sessions cannot be reached; please try again in a moment.\n"
REFUSED_HEADERS = (
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Length", str(len(REFUSED))),
    ("Cache-Control", "no-store"),
    ("Retry-After", "1"),
)


class Previous(NamedTuple):
    """A session of the system before this one, as the hook `previous` has found it."""

    data: Mapping[str, Any]
    user_id: str | None = None


class FromBefore(Protocol):
    """The hook: the request's cookies → the session that the previous system has for them, or None.

    It is asked when a request brings no genuine cookie of ours. It has to remove what it returns (GETDEL):
    else an old cookie brings back who has logged out. In ASGI it may be awaited.
    """

    def __call__(self, cookies: Mapping[str, str]) -> Any: ...


class Visit(NamedTuple):
    """One request: the cookie it may have, the one it brought, its device, its whole Cookie header."""

    carrier: Carrier | None
    cookie: str | None
    device: dict[str, str]
    header: str

    @property
    def others(self) -> dict[str, str]:
        """All its cookies, for `previous`; of equal names the first."""
        pairs = (part.partition("=") for part in self.header.split(";"))
        found: dict[str, str] = {}
        for name, equals, value in pairs:
            if equals:
                found.setdefault(name.strip(), value.strip().strip('"'))
        return found


class Web:
    """Settings of an adapter. trusted_proxies: networks whose X-Forwarded-Proto is believed; "unix"."""

    def __init__(
        self,
        store: BaseStore,
        cookie: CookieRules | Mapping[str, Any] | None = None,
        trusted_proxies: Sequence[str] = (),
        previous: FromBefore | None = None,
    ) -> None:
        if isinstance(trusted_proxies, str):
            raise TypeError("trusted_proxies is a list of networks")
        self.store, self.previous = store, previous
        self.rules = cookie if isinstance(cookie, CookieRules) else CookieRules(**(cookie or {}))
        self.carriers = Carriers(self.rules, trusted_proxies)
        self._said: set[str] = set()

    def arrived(
        self, scheme: str, host: str, peer: str, cookies: str,
        forwarded_proto: str = "", forwarded_for: str = "", user_agent: str = "",
    ) -> Visit:  # fmt: skip
        """scheme: as the server sees it. peer: an address. The others: headers, "" without."""
        carrier = self.carriers.carrier(self.carriers.scheme(scheme, forwarded_proto, peer), host)
        device = {"ip": self.carriers.address(peer, forwarded_for), "user_agent": user_agent[:256]}
        if carrier is None:
            self._say_once(logging.ERROR, NO_COOKIE)
            return Visit(None, None, device, cookies)
        return Visit(carrier, self._choose(carrier.values(cookies)) if cookies else None, device, cookies)

    def _choose(self, values: list[str]) -> str | None:
        """Several genuine cookies: somebody has planted one. Which is not to be known, so none counts."""
        if len(values) < 2:
            return values[0] if values else None
        genuine = [value for value in values if self.store.genuine(value)]
        if len(genuine) > 1:
            self.store.rules.suspicious(genuine[0], "several genuine cookies in one request")
            return None
        return genuine[0] if genuine else values[0]

    def wants_previous(self, visit: Visit) -> bool:
        """Whether the hook `previous` is to be asked."""
        return (
            self.previous is not None
            and visit.carrier is not None
            and bool(visit.header)
            and not self.store.genuine(visit.cookie)
        )

    def saves(self, visit: Visit, session: BoundSession, status: int) -> bool:
        """Whether what was changed is saved by itself at the end of the request."""
        return status < 500 and visit.carrier is not None and not session.unavailable

    def leaving(
        self, visit: Visit, session: BoundSession, vary: str = "", cache_control: str = ""
    ) -> tuple[str | None, Mapping[str, str]]:
        """Set-Cookie, and headers that replace the response's own, of which it has vary and cache_control."""
        cookie, cleared = None, ""
        if session.cookie_changed and visit.carrier is not None:
            if session.cookie is not None:
                cookie = visit.carrier.set(session.cookie, session.cookie_max_age)
                if not visit.carrier.secure:
                    self._say_once(logging.WARNING, PLAIN.format(name=self.carriers.secure.name))
            else:
                cookie, cleared = visit.carrier.drop(), self.rules.clear_site_data
            session.cookie_sent()
        session.sendable = False
        return cookie, headers_beside(
            vary, cache_control, read=session.accessed, cookie=cookie is not None, cleared=cleared
        )

    def _say_once(self, level: int, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.log(level, text)


def taken_over(session: BoundSession, found: Previous | None) -> str | None:
    """Puts what `previous` has found into a new session; who is to be logged in."""
    if found is None:
        return None
    session.update(found.data)
    return found.user_id

"""`SessionData`: what one request has of a session; a dictionary that knows what was changed in it.

Pure. A change inside a value (a list appended to, a dict filled) is found by encoding again what was handed
out; a value that was set to what it was is no change. Operations (core/sessions/operations) fill it and ask
it; applications use it as a dict.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

from shardproxy.core.sessions.errors import SessionUnavailable
from shardproxy.core.sessions.keyring import Identity
from shardproxy.core.sessions.records import Codec, Meta, Timeouts

COUNTED = ("i", "a")  # changes that are steps from what the record has then
_SCALARS = frozenset((str, int, float, bool, type(None)))


class Change(NamedTuple):
    """One step of a save. what: a letter, set, delete, increment or append; data: as `Codec.plain` has it."""

    what: str
    name: str
    data: bytes


class SessionData(MutableMapping[str, Any]):
    """A session, as one request sees it.

    accessed    anything of it was read or written: the response depends on the cookie
    is_new      nothing is stored (yet)
    unavailable the store could not be asked (`fail = "anonymous"`): reads as empty, a write raises
    late        its id was ended a moment ago, by a login or logout in another request: reads as empty; a save
                is a SessionGone, as a new id would take the place of the one that the login has made
    user_id     whose it is; None: anonymous. Set by `login` only
    device      what is known of the device, for `list_sessions`; stored by `login`
    handle      its public name: for lists, logs and operators; stable while it lives; "" if nothing is stored
    """

    # Until an operation says otherwise: one is made for every request
    accessed = unavailable = late = False
    _cookie_changed = False
    _presented: Identity | None = None  # of the request's cookie, when it was genuine
    _followed: Identity | None = None  # where the presented id has led
    _timeouts: Timeouts | None = None  # of this session alone, wanted
    _identity: Identity | None = None
    _meta: Meta | None = None  # as it was read; what each save changes is beside it
    _user_id: str | None = None
    _nonce = ""
    _version = 0
    _now = _ttl = _renew_at = 0  # ms, of the node, at the last operation

    def __init__(self, codec: Codec, device: Mapping[str, Any] | None = None) -> None:
        self._codec = codec
        self.device: dict[str, Any] = dict(device) if device else {}
        self._forget()

    def _empty(self) -> None:
        """As if nothing had ever been stored."""
        self._identity = self._followed = self._meta = self._user_id = None
        self.late = self._cookie_changed = False
        self._nonce = ""
        self._version = self._now = self._ttl = self._renew_at = 0
        self._forget()

    def _forget(self) -> None:
        self._values: dict[str, Any] = {}
        self._stored: dict[str, bytes] = {}  # what the record has, plain
        self._handed: set[str] = set()  # values that can change inside, and were handed out
        self._appended: dict[str, bytes] = {}  # what a list comes to with what was appended, plain
        self._changed: set[str] = set()  # set or deleted
        self._ops: list[Change] = []  # incr and append

    def _user_state(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def _restore(self, state: dict[str, Any]) -> None:
        self.__dict__.clear()
        self.__dict__.update(state)

    # --- what it is ---

    @property
    def handle(self) -> str:
        return self._identity.tag + self._meta.handle if self._identity and self._meta else ""

    @property
    def user_id(self) -> str | None:
        self.accessed = True
        return self._user_id

    @user_id.setter
    def user_id(self, user_id: str | None) -> None:
        self._user_id = user_id

    @property
    def is_new(self) -> bool:
        return self._identity is None

    @property
    def kind(self) -> str | None:
        """The class of sessions it belongs to ("anonymous", "signed_in", "remember_me"); None: not stored."""
        return self._meta.kind if self._meta else None

    @property
    def created_at(self) -> float | None:
        """When it was created, by the node's clock, in seconds since 1970; None: not stored."""
        return self._meta.created / 1000 if self._meta else None

    @property
    def authenticated_at(self) -> float | None:
        """When its user last proved who he is: at `login`. None: anonymous. Compare with `now`."""
        return self.created_at if self.user_id is not None else None

    @property
    def now(self) -> float | None:
        """The node's clock at the last operation, in seconds since 1970."""
        return self._now / 1000 if self._meta else None

    @property
    def expires_in(self) -> float | None:
        """Seconds it will live without another request."""
        return self._ttl / 1000 if self._meta else None

    @property
    def renewal_due(self) -> bool:
        """A new id is due: `renew()`, or `save()`, makes it where a cookie can be sent."""
        return self._meta is not None and self._now >= self._renew_at

    @property
    def id_followed(self) -> bool:
        """The request came with an old id, and is to be answered with the one that it leads to."""
        return self._cookie_changed and self._followed is not None and self._followed == self._identity

    @property
    def modified(self) -> bool:
        """Whether there is anything to save."""
        return bool(self._ops or self._differences())

    # --- the dictionary ---

    def __getitem__(self, name: str) -> Any:
        self.accessed = True
        value = self._values[name]
        if type(value) not in _SCALARS:
            self._handed.add(name)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        self._writing(name)
        self._values[name] = value
        self._changed.add(name)

    def __delitem__(self, name: str) -> None:
        self._writing(name)
        del self._values[name]
        self._changed.add(name)

    def __iter__(self) -> Iterator[str]:
        self.accessed = True
        return iter(self._values)

    def __len__(self) -> int:
        self.accessed = True
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        self.accessed = True
        return name in self._values

    def __repr__(self) -> str:
        state = "unavailable" if self.unavailable else self.handle or "not stored"
        return f"<{type(self).__name__} {state}>"

    def clear(self) -> None:
        """Removes every key; the session stays, with its user."""
        for name in list(self._values):
            del self[name]

    def incr(self, name: str, by: int = 1) -> int:
        """Adds to an integer, 0 when there is none; at the next save, to what the record has then.

        Parallel ones add up. Returns what this request sees; after the save `session[name]` is the sum.
        """
        self._writing(name)
        value = self._values.get(name, 0)
        if type(value) is not int or type(by) is not int:
            raise TypeError(f"{name!r} is no integer")
        self._values[name] = value = value + by
        if name not in self._changed:  # else it is set as a whole
            self._ops.append(Change("i", name, b"%d" % by))
        return value

    def append(self, name: str, item: Any) -> None:
        """Appends to a list, at the next save, to what the record has then: parallel ones all stay."""
        self._writing(name)
        value = self._values.get(name, [])
        if not isinstance(value, list):
            raise TypeError(f"{name!r} is no list")
        data = self._codec.plain(item, name)
        if name in self._handed and self._difference(name):
            self._changed.add(name)
        value.append(item)  # in place: it may be held by somebody
        self._values[name] = value
        if name not in self._changed:  # else it is set as a whole
            self._ops.append(Change("a", name, data))
            self._handed.add(name)
            self._appended[name] = self._codec.plain(value)

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Timeouts of this session alone, from the next `save` on; `login` sets those of its class."""
        self._writing("")
        self._timeouts = timeouts

    def _writing(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"keys of a session are strings, not {type(name).__name__}")
        self.accessed = True
        if self.unavailable:
            raise SessionUnavailable("the session could not be read: it cannot be written")

    # --- what was changed ---

    def _difference(self, name: str) -> Change | None:
        """What has to be done, so that the record has that value."""
        had = self._stored.get(name)
        if name not in self._values:
            return None if had is None else Change("d", name, b"")
        if name not in self._changed:
            had = self._appended.get(name, had)
        data = self._codec.plain(self._values[name], name)
        if data == had or (had is not None and self._codec.canonical(had) == data):
            return None  # another language's JSON may have spaces
        return Change("s", name, data)

    def _differences(self) -> list[Change]:
        """What is to be set and deleted."""
        if not self._changed and not self._handed:
            return []
        return [each for each in map(self._difference, self._changed | self._handed) if each is not None]

    def _changes(self) -> list[Change]:
        """All of it, in the order to be done. What is set as a whole needs no other steps."""
        whole = self._differences()
        if not self._ops:
            return whole
        names = {change.name for change in whole} | self._changed
        return whole + [op for op in self._ops if op.name not in names]

    def _saved(self, changes: list[Change], results: Mapping[str, tuple[Any, bytes]]) -> None:
        """These are stored now; results: values of incr and append as the record has them."""
        for what, name, data in changes:
            if what == "s":
                self._stored[name] = data
            elif what == "d":
                self._stored.pop(name, None)
        for name, (value, data) in results.items():
            self._values[name], self._stored[name] = value, data
        # What was handed out, or set, may still be held, and change again
        held = self._handed | self._changed
        self._handed = {name for name in held if type(self._values.get(name)) not in _SCALARS}
        self._changed, self._appended, self._ops, self._timeouts = set(), {}, [], None

"""Users: what each may do, and who logs in with what. core/acl_rules reads them from Redis's ACL language.

Pure. `User.describe` writes a user as ACL LIST does. Passwords are kept as SHA-256 digests alone, are in no
repr, and are compared in constant time. core/permit checks commands against users.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

READ, WRITE = 1, 2  # what a key pattern is for
NAME_MOST = 128  # characters of a name
DEFAULT = "default"  # whom a client is before it logs in


class KeyPattern(msgspec.Struct, frozen=True):
    pattern: str
    flags: int = READ | WRITE

    def __str__(self) -> str:
        return {READ: "%R", WRITE: "%W"}.get(self.flags, "") + "~" + self.pattern


class Selector(msgspec.Struct, frozen=True):
    """One set of permissions: the user's own, or one in parentheses. Nothing is allowed but what it says."""

    commands: tuple[
        str, ...
    ] = ()  # rules in order: "+@all", "-flushall", "+config|get"; they begin from -@all
    all_keys: bool = False
    keys: tuple[KeyPattern, ...] = ()
    all_channels: bool = False
    channels: tuple[str, ...] = ()

    @property
    def everything(self) -> bool:
        """It allows every command, learned ones too, on every key and channel."""
        return (
            self.all_keys
            and self.all_channels
            and self.commands[:1] == ("+@all",)
            and not any(rule[0] == "-" for rule in self.commands)
        )

    @property
    def command_text(self) -> str:
        return " ".join(self.commands if self.commands[:1] == ("+@all",) else ("-@all", *self.commands))

    @property
    def key_text(self) -> str:
        return "~*" if self.all_keys else " ".join(map(str, self.keys))

    @property
    def channel_text(self) -> str:
        return "&*" if self.all_channels else " ".join("&" + channel for channel in self.channels)

    def describe(self) -> str:
        only = "" if self.all_channels else "resetchannels"
        return " ".join(filter(None, (self.key_text, only, self.channel_text, self.command_text)))


class User(msgspec.Struct, frozen=True):
    """Nobody can log in as a user of whom nothing more is said than the name."""

    name: str
    enabled: bool = False
    nopass: bool = False
    passwords: tuple[str, ...] = ()  # SHA-256, hexadecimal
    root: Selector = Selector()
    selectors: tuple[Selector, ...] = ()

    def __repr__(self) -> str:
        return f"User({self.name!r})"

    @property
    def everything(self) -> bool:
        return any(each.everything for each in (self.root, *self.selectors))

    @property
    def open(self) -> bool:
        """Whoever says this name is this user; of the default user: whoever connects."""
        return self.enabled and self.nopass

    @property
    def flags(self) -> tuple[str, ...]:
        return ("on" if self.enabled else "off", *(["nopass"] if self.nopass else []))

    def describe(self) -> str:
        """A line of ACL LIST, which is a line of an ACL file."""
        hashes = ["#" + digest for digest in self.passwords]
        selectors = [f"({each.describe()})" for each in self.selectors]
        return " ".join(["user", self.name, *self.flags, *hashes, self.root.describe(), *selectors])

    def accepts(self, password: bytes) -> bool:
        """Takes the same time whichever password is wrong, and whether the user may log in at all."""
        digest = digest_of(password)
        found = False
        for known in self.passwords:
            found |= hmac.compare_digest(known, digest)
        return self.enabled and (self.nopass or found)


NOBODY = User("", passwords=("0" * 64,))  # who logs in as a user that does not exist
FREE = User(DEFAULT, True, True, root=Selector(("+@all",), all_keys=True, all_channels=True))


class Users(msgspec.Struct, frozen=True):
    """All of them. Without any, everybody is `default` and may do everything, as in Redis."""

    by_name: Mapping[str, User] = msgspec.field(default_factory=dict)
    trust_scripts: bool = (
        False  # who is restricted may run scripts all the same: nodes do not hold them to rules
    )
    limits: Mapping[str, int] = msgspec.field(default_factory=dict)  # name → connections at once

    def __post_init__(self) -> None:
        if DEFAULT not in self.by_name:
            msgspec.structs.force_setattr(self, "by_name", {**self.by_name, DEFAULT: FREE})

    def get(self, name: str) -> User | None:
        return self.by_name.get(name)

    @property
    def default(self) -> User:
        return self.by_name[DEFAULT]

    def listed(self) -> list[User]:
        return [self.by_name[name] for name in sorted(self.by_name, key=str.encode)]

    def with_changes(self, changed: Iterable[User] = (), gone: Iterable[str] = ()) -> "Users":
        left = {name: self.by_name[name] for name in self.by_name.keys() - set(gone)}
        return msgspec.structs.replace(self, by_name=left | {user.name: user for user in changed})

    def to_wire(self) -> list[Any]:
        """For another process of ours. Bytes, since a pattern need not be text."""
        lines = [user.describe().encode(errors="surrogateescape") for user in self.by_name.values()]
        return [lines, self.trust_scripts, dict(self.limits)]

    def login(self, name: str, password: bytes) -> User | None:
        """The user, if that is the password."""
        user = self.by_name.get(name, NOBODY)
        return user if user.accepts(password) else None


def digest_of(password: bytes) -> str:
    return hashlib.sha256(password).hexdigest()

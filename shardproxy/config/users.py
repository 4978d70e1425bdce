"""The users of shardproxy.toml: `[users]` and `acl_file` → core/acl's records, every mistake named.

A rule may hold a password (`>secret`), so rules are shown without passwords, and a word that is no rule
is not shown at all: it may be a password that lacks its mark. The language itself (core/acl_rules) is
imported where there are users: most clients have none.
"""

from __future__ import annotations  # made when they are asked for: most clients never do

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from shardproxy.config import tables, text
from shardproxy.config.tables import Reader, Record, Rule
from shardproxy.config.text import Password, Secret
from shardproxy.core import acl

if TYPE_CHECKING:
    from shardproxy.config import Config

RULES = 'rules as in Redis\'s ACL SETUSER, such as "on >PASSWORD ~app:* +@all -@dangerous"'
PASSWORDS = ("password", "password_env", "password_file")
NAME = text.matching(r"[^\s\x00]{1,128}", "1 to 128 characters, no spaces")


class Rules(Secret):
    """Shown without its passwords."""

    @property
    def words(self) -> list[str]:
        from shardproxy.core import acl_rules

        return acl_rules.words_of(self.reveal())

    @property
    def public(self) -> str:
        return " ".join(word for word in self.words if word[:1] not in (">", "#", "<", "!"))

    @property
    def plain(self) -> bool:
        """A password is written out in it."""
        return any(word[:1] in (">", "<") for word in self.words)


def read_rules(value: object) -> Rules:
    if not isinstance(value, str):
        raise ValueError(RULES)
    return Rules(value)


def public(rules: Rules | str) -> str:
    """What may be shown of them."""
    return rules.public if isinstance(rules, Rules) else rules


RuleText = Annotated[
    Rules,
    Meta(
        extra={"read": read_rules, "write": public, "allowed": RULES},
        examples=["on ~app:* &* +@all -@dangerous"],
    ),
]


def given(user: UserConfig) -> list[str]:
    """Which of the ways to give a password are used, beside the rules."""
    return [key for key in PASSWORDS if getattr(user, key) is not None]


class UserConfig(Record, frozen=True, kw_only=True):
    """Who may log in to the proxy, and do what there. Without users everybody may do everything."""

    acl: Annotated[RuleText, "what it may do, in Redis's ACL language"]
    password_env: Annotated[text.Variable | None, "the environment variable that holds its password"] = None
    password_file: Annotated[text.FilePath | None, "the file that holds its password"] = None
    password: Annotated[Password | None, "its password, only in a file that others cannot read"] = None
    clients: Annotated[
        int,
        Meta(ge=0, le=10**9),
        "connections logged in as this user at once, over all workers; 0: any number",
    ] = 0

    short: ClassVar[str] = "acl"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(PASSWORDS, lambda it: " and ".join(given(it)) if len(given(it)) > 1 else "", "one of them"),
    )

    @classmethod
    def prepare(cls, table: Any) -> Any:
        """A user may be its rules alone."""
        return {"acl": table} if isinstance(table, str) else table


USER_RULES = (
    Rule(
        ("acl_file", "users"),
        lambda it: f"both acl_file and {len(it.users)} in [users]" if it.acl_file and it.users else "",
        "one of them",
    ),
)


def guarded(config: Config) -> bool:
    """Whether who does not log in may do nothing; of a file that is not read here, it is taken to say so."""
    default = config.users.get(acl.DEFAULT)
    if config.acl_file or default is None:
        return bool(config.acl_file)
    from shardproxy.core import acl_rules

    return not acl_rules.parse("", default.acl.words)[0].open


def users_of(config: Config, passwords: Mapping[str, str], reader: Reader) -> acl.Users:
    """What the configuration comes to. passwords: those not in the rules. Mistakes go to the reader."""
    found: dict[str, acl.User] = {}
    for name, each in config.users.items():
        words = each.acl.words + ([">" + passwords[name]] if passwords.get(name) else [])
        found[name] = user_of(name, words, reader, tables.join("users", name) + ".acl")
    limits = {name: each.clients for name, each in config.users.items() if each.clients}
    return acl.Users(found, config.user_scripts == "trust", limits)


def user_of(name: str, words: list[str], reader: Reader, where: str) -> acl.User:
    from shardproxy.core import acl_rules

    user, wrong = acl_rules.parse(name, words)
    for each in wrong:
        reader.mistake(where, each.found, each.allowed)
    return user


def read_acl_file(config: Config, reader: Reader) -> acl.Users:
    """The users of `acl_file`: lines as ACL LIST writes them; blank ones and # comments are passed over."""
    from shardproxy.core import acl_rules

    path, found = config.acl_file or "", {}
    try:
        with open(path, "rb") as file:
            readable = bool(os.fstat(file.fileno()).st_mode & 0o044)
            lines = file.read().decode(errors="surrogateescape").split("\n")
    except OSError as error:
        reader.mistake("acl_file", f"{path}, which cannot be read ({error.strerror})", "a file of users")
        return acl.Users()
    for number, line in enumerate(lines, 1):
        words, where = list(filter(None, acl_rules.SPACES.split(line))), f"acl_file: {path}, line {number}"
        if not words or words[0].startswith("#"):
            continue
        if words[0].lower() != "user" or len(words) < 2:
            reader.mistake(where, "a line without a user", "user NAME RULES...")
        elif words[1].encode(errors="replace").decode() != words[1]:
            reader.mistake(where, "a name that is not UTF-8", "another name")
        elif words[1] in found:
            reader.mistake(where, f"user {words[1]} again", "each user once")
        else:
            rules = Rules(" ".join(words[2:]))
            found[words[1]] = user_of(words[1], rules.words, reader, f"{where}, user {words[1]}")
            if readable and rules.plain:
                reader.mistake(
                    where, "a password in a file that others can read", f"#SHA256, or chmod 600 {path}"
                )
    return acl.Users(found, config.user_scripts == "trust")

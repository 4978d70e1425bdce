"""The rules of users in Redis's own ACL language → `acl.User`.

Pure. Rules are words ("on", ">secret", "~app:*", "+@read", "(~tmp:* +set)"); `parse` reads them and names
every word that is wrong; `modify` applies more of them to a user, all or none. Command rules stay as they
were given, in order, without those that a later one replaced, as Redis 7.2 keeps them: what they come to is
worked out for a command table by `allowed`, again for each new table, so that learned commands are in.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from shardproxy.core import command_policy
from shardproxy.core.acl import NAME_MOST, READ, WRITE, KeyPattern, Selector, User, Users, digest_of
from shardproxy.core.command_rows import Row

if TYPE_CHECKING:
    from shardproxy.core.commands import CommandTable

# As ACL CAT lists them
CATEGORIES = (
    "keyspace", "read", "write", "set", "sortedset", "list", "hash", "string", "bitmap", "hyperloglog", "geo",
    "stream", "pubsub", "admin", "fast", "slow", "blocking", "dangerous", "connection", "transaction",
    "scripting",
)  # fmt: skip
# Ours, and granted by name alone: who may run every command of Redis may not thereby see everybody's sessions
APART = "session"
# What nodes newer than the built-in table bring: a rule may name it before any node has told of it. A name
# with a dot is a module's, and may be named as well.
NEWER_CATEGORIES = (
    "bloom", "cuckoo", "cms", "json", "search", "tdigest", "timeseries", "topk", "vset",
)  # fmt: skip
NEWER_COMMANDS = (
    "hexpire", "hexpireat", "hexpiretime", "hpersist", "hpexpire", "hpexpireat", "hpexpiretime", "hpttl",
    "httl", "hgetdel", "hgetex", "hsetex", "vadd", "vcard", "vdim", "vemb", "vgetattr",
    "vinfo", "vismember", "vlinks", "vrandmember", "vrange", "vrem", "vsetattr", "vsim", "xackdel",
    "xdelex", "xcfgset", "delex", "digest", "msetex",
)  # fmt: skip

_HASH = re.compile(r"[0-9a-f]{64}")
_COMMAND = re.compile(r"[a-z0-9_.:-]{1,40}")
SPACES = re.compile(r"[ \t\n\v\f\r]+")  # as isspace has them: others may be in keys


class Wrong(msgspec.Struct, frozen=True):
    """A word of some rules that is wrong. found: the word, unless it may be a password."""

    found: str
    allowed: str


SYNTAX = "Syntax error"
UNKNOWN = "Unknown command or category name in ACL"
NO_HASH = "The password hash must be exactly 64 characters and contain only lowercase hexadecimal characters"
NO_PASSWORD = "The password you are trying to remove from the user does not exist"
ALL_ALREADY = (
    "Adding a pattern after the * pattern (or the 'all{0}' flag) is not valid and does not have any effect. "
    "Try 'reset{0}' to start with an empty list of {1}"
)
FIRST_ARGUMENT = "Allowing first-arg of a subcommand is not supported"


class RuleError(ValueError):
    """A word is wrong. str(): what is allowed; `redis`: what Redis says of it."""

    def __init__(self, allowed: str, redis: str = SYNTAX) -> None:
        super().__init__(allowed)
        self.redis = redis


class Refused(Exception):
    """Rules for a user that are not applied. found: the word, unless it may be a password."""

    def __init__(self, found: str, redis: str, unmatched: bool = False) -> None:
        super().__init__(redis)
        self.found, self.redis, self.unmatched = found, redis, unmatched


@functools.cache
def known() -> Mapping[str, Row]:
    """The built-in commands, subcommands as "config|get"."""
    return {flat.name: flat for row in command_policy.builtin_rows() for flat in row.flat()}


def _near(word: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    import difflib  # slow to import, and for mistakes alone

    return difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)


def words_of(rules: str) -> list[str]:
    """The words of some rules; a selector in parentheses is one."""
    return merged(filter(None, SPACES.split(rules)))


def merged(words: Iterable[str]) -> list[str]:
    """With those of a selector in one."""
    found: list[str] = []
    for word in words:
        if found and _is_unmatched(found[-1]):
            found[-1] += " " + word
        else:
            found.append(word)
    return found


def _is_unmatched(word: str) -> bool:
    return word.startswith("(") and not word.endswith(")")


def is_name(text: str) -> bool:
    """Whether a user can be called so, in a file as well."""
    return len(text) <= NAME_MOST and text.isprintable() and not re.search(r"\s|^$", text)


def parse(name: str, words: Iterable[str]) -> tuple[User, list[Wrong]]:
    """A user, from nothing, and what of the words is wrong (left out of the user)."""
    user, wrong = User(name), []
    for word in words:
        try:
            user = _applied(user, word)
        except RuleError as error:
            wrong.append(Wrong(shown(word), str(error)))
    return user, wrong


def modify(user: User, words: Iterable[str]) -> User:
    """What the user becomes by more rules, as ACL SETUSER takes them. Raises Refused."""
    given, begun = list(words), ""
    for word in given:
        if not begun and _is_unmatched(word):
            begun = word
        elif word.endswith(")"):
            begun = ""
    if begun:
        raise Refused(veiled(begun), SYNTAX, unmatched=True)
    for word in filter(None, merged(given)):
        try:
            user = _applied(user, word)
        except RuleError as error:
            raise Refused(veiled(word), error.redis) from None
    return user


def _applied(user: User, word: str) -> User:
    """Raises RuleError."""
    if word.startswith("("):
        return msgspec.structs.replace(user, selectors=(*user.selectors, _read_selector(word)))
    if (changed := _account(user, word)) is not None:
        return changed
    return msgspec.structs.replace(user, root=_permission(user.root, word))


WORDS = (
    "on", "off", "nopass", "resetpass", "reset", "clearselectors", "allkeys", "resetkeys", "allchannels",
    "resetchannels", "allcommands", "nocommands",
)  # fmt: skip
A_WORD = (
    "a word of Redis's ACL language: on, off, >PASSWORD, #SHA256, nopass, ~KEYS, %R~KEYS, %W~KEYS, "
    "&CHANNELS, +COMMAND, -COMMAND, +COMMAND|SUBCOMMAND, +@CATEGORY, -@CATEGORY, (SELECTOR), reset..."
)


def shown(word: str) -> str:
    """A word in quotes, if it may be shown at all."""
    found = veiled(word)
    return "a word that is not shown" if found == "..." else found if found.endswith("...") else f'"{found}"'


def veiled(word: str) -> str:
    """A word, or a selector's words, in ASCII: nothing of what could be a password."""
    if not word.startswith(("+", "-", "~", "%", "&", "(")):
        return f"{word[:1] if word.startswith(('>', '<', '#', '!')) else ''}..."
    parts = (
        part if part.lstrip("(")[:1] in ("+", "-", "~", "%", "&", ")", "") else "..."
        for part in SPACES.split(word)
    )
    return " ".join(parts)[:80].encode("ascii", "backslashreplace").decode()


def _account(user: User, word: str) -> User | None:
    """The user after a word that is not about permissions; None: it is about them."""
    replace, value = msgspec.structs.replace, word[1:]
    match word.lower():
        case "on" | "off" as state:
            return replace(user, enabled=state == "on")
        case "nopass":
            return replace(user, nopass=True, passwords=())
        case "resetpass":
            return replace(user, nopass=False, passwords=())
        case "clearselectors":
            return replace(user, selectors=())
        case "reset":
            return User(user.name)
        case "sanitize-payload" | "skip-sanitize-payload":  # of RESTORE: a node's matter
            return user
    if word[:1] in (">", "#"):
        if word[0] == "#" and not _HASH.fullmatch(value):
            raise RuleError("# and 64 lower-case hexadecimal digits, the SHA-256 of the password", NO_HASH)
        digest = value if word[0] == "#" else digest_of(value.encode(errors="surrogateescape"))
        return replace(user, nopass=False, passwords=tuple(dict.fromkeys((*user.passwords, digest))))
    if word[:1] in ("<", "!"):
        digest = value if word[0] == "!" else digest_of(value.encode(errors="surrogateescape"))
        if word[0] == "!" and not _HASH.fullmatch(value):
            raise RuleError("! and 64 lower-case hexadecimal digits, the SHA-256 of the password", NO_HASH)
        if digest not in user.passwords:
            raise RuleError("a password that was given before it", NO_PASSWORD)
        return replace(user, passwords=tuple(each for each in user.passwords if each != digest))
    return None


def _read_selector(word: str) -> Selector:
    if not word.endswith(")"):
        raise RuleError("a closing parenthesis")
    selector = Selector()
    for inner in filter(None, SPACES.split(word[1:-1])):
        selector = _permission(selector, inner)
    return selector


def _permission(selector: Selector, word: str) -> Selector:
    """The selector after a word about commands, keys or channels. Raises RuleError."""
    replace = msgspec.structs.replace
    match word.lower():
        case "allkeys" | "~*":
            return replace(selector, all_keys=True, keys=())
        case "resetkeys":
            return replace(selector, all_keys=False, keys=())
        case "allchannels" | "&*":
            return replace(selector, all_channels=True, channels=())
        case "resetchannels":
            return replace(selector, all_channels=False, channels=())
        case "allcommands" | "+@all":
            return replace(selector, commands=("+@all",))
        case "nocommands" | "-@all":
            return replace(selector, commands=())
    if word[:1] in ("~", "%"):
        return _add_key(selector, word)
    if word[:1] == "&":
        if selector.all_channels:
            already = ALL_ALREADY.format("channels", "channels")
            raise RuleError("no channels after allchannels; begin again with resetchannels", already)
        if SPACES.search(word) or "\0" in word:
            raise RuleError("a pattern without spaces")
        return replace(selector, channels=tuple(dict.fromkeys((*selector.channels, word[1:]))))
    if word[:1] in ("+", "-"):
        return _add_command(selector, word[0], word[1:].lower())
    near = _near(word.lower(), WORDS, cutoff=0.8)
    raise RuleError(A_WORD + (f" (did you mean {near[0]}?)" if near else ""))


def _add_key(selector: Selector, word: str) -> Selector:
    marks, tilde, pattern = word.partition("~")
    letters = marks[1:].upper()
    if selector.all_keys:
        already = ALL_ALREADY.format("keys", "patterns")
        raise RuleError("no keys after allkeys; begin again with resetkeys", already)
    if not tilde or (marks and not letters) or set(letters) - {"R", "W"}:
        raise RuleError("%R~PATTERN, %W~PATTERN, %RW~PATTERN or ~PATTERN")
    if SPACES.search(pattern) or "\0" in pattern:
        raise RuleError("a pattern without spaces")
    flags = (READ * ("R" in letters) | WRITE * ("W" in letters)) or READ | WRITE
    if pattern == "*" and flags == READ | WRITE:
        return msgspec.structs.replace(selector, all_keys=True, keys=())
    # of the same pattern, what it is for is added up
    flags_of = {each.pattern: each.flags for each in selector.keys}
    flags_of[pattern] = flags_of.get(pattern, 0) | flags
    return msgspec.structs.replace(selector, keys=tuple(KeyPattern(*each) for each in flags_of.items()))


def _add_command(selector: Selector, sign: str, name: str) -> Selector:
    if name.startswith("@"):
        if name[1:] not in (*CATEGORIES, *NEWER_CATEGORIES, APART):
            near = _near(name[1:], CATEGORIES)
            raise RuleError(
                "a category, as ACL CAT lists them" + (f" (did you mean @{near[0]}?)" if near else ""),
                UNKNOWN,
            )
    else:
        _check_command(sign, name)
    # what it replaces goes: itself, and rules for its subcommands
    kept = [rule for rule in selector.commands if rule[1:] != name and not rule[1:].startswith(name + "|")]
    commands = [*kept, sign + name]
    while commands and commands[0][0] == "-":  # nothing is allowed yet, so nothing to forbid
        del commands[0]
    return msgspec.structs.replace(selector, commands=tuple(commands))


def _check_command(sign: str, name: str) -> None:
    rows = known()
    container, bar, sub = name.partition("|")
    newer = "." in container or container in NEWER_COMMANDS
    if not _COMMAND.fullmatch(container) or (container not in rows and not newer):
        near = _near(container, rows)
        raise RuleError("a command of Redis" + (f" (did you mean {near[0]}?)" if near else ""), UNKNOWN)
    if not bar or name in rows:
        return
    if not sub or "|" in sub or SPACES.search(sub) or "\0" in sub:
        known_sub = "|" in sub and name.rpartition("|")[0] in rows
        raise RuleError("COMMAND|SUBCOMMAND", FIRST_ARGUMENT if known_sub else UNKNOWN if sub else SYNTAX)
    if not newer and rows[container].subcommands:
        subs = ", ".join(each.name.partition("|")[2] for each in rows[container].subcommands)
        raise RuleError(f"a subcommand of {container}: {subs}", UNKNOWN)
    if sign == "-":
        raise RuleError("COMMAND|FIRST-ARGUMENT after a + only", UNKNOWN)


@functools.lru_cache(maxsize=256)
def _apart(selector: Selector, table: "CommandTable") -> frozenset[str]:
    return (
        frozenset(row.name for row in table.records if APART in row.categories)
        & allowed(selector, table.records)[0]
    )


def grants_apart(user: "User | None", name: str, table: "CommandTable") -> bool:
    """Whether a rule of this user's gives that command, by its name or by @session.

    The engine asks no rule of who may do everything: of what is apart, all are asked this.
    """
    return user is not None and any(
        name in _apart(selector, table) for selector in (user.root, *user.selectors)
    )


def allowed(selector: Selector, rows: Sequence[Row]) -> tuple[frozenset[str], Mapping[str, tuple[str, ...]]]:
    """Which commands of a table these rules come to, and which more with certain first arguments.

    rows: flat, subcommands after their containers. A rule for what is not in the table does nothing.
    """
    found: set[str] = set()
    first: dict[str, tuple[str, ...]] = {}
    subs: dict[str, list[str]] = {}
    categories: dict[str, list[str]] = {"all": [row.name for row in rows if APART not in row.categories]}
    for row in rows:
        subs.setdefault(row.name.partition("|")[0], []).append(row.name)
        for category in (APART,) if APART in row.categories else row.categories:
            categories.setdefault(category, []).append(row.name)
    names = {row.name for row in rows}
    for rule in selector.commands:
        name = rule[1:]
        if name.startswith("@"):
            # a container in a category brings its subcommands along
            hit = {each for one in categories.get(name[1:], ()) for each in (subs.get(one) or (one,))}
        elif name in names:
            hit = set(subs.get(name) or (name,))
        else:
            container, _, argument = name.partition("|")
            if argument and rule[0] == "+" and container in names and len(subs[container]) == 1:
                first[container] = (*first.get(container, ()), argument)
            continue
        found = found | hit if rule[0] == "+" else found - hit
        for each in hit:
            first.pop(each, None)
    return frozenset(found), first


def users_from_wire(data: Sequence[Any]) -> Users:
    """Of `Users.to_wire`."""
    lines, trust_scripts, limits = data
    found = (line.decode(errors="surrogateescape").split(" ", 2) for line in lines)
    return Users({name: parse(name, words_of(rules))[0] for _, name, rules in found}, trust_scripts, limits)

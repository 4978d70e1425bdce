"""Configurations of other proxies → shardproxy.toml: one `Draft` a pool, and how a draft is written.

nutcracker and mcrouter make the drafts; this module knows of neither proxy. A draft keeps what
means something else here beside the setting, and what has no counterpart here by name: nothing of a file
goes silently. What is written has been read again as a configuration.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from shardproxy.config import ConfigError, Mistake, Source, load, tables, text

WIDTH = 110


class Setting(NamedTuple):
    key: str
    value: object  # of TOML; a dict is an inline table
    note: str = ""  # what else it means here than there


@dataclass
class Draft:
    """A pool of another proxy, on its way to a file of its own. In the paths of tables `pool` is this one."""

    name: str  # as the other proxy has it
    source: str  # "pool alpha of nutcracker.yml"
    settings: dict[str, list[Setting]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)  # what has no counterpart here, a sentence each

    def set(self, table: str, key: str, value: object, note: str = "") -> None:
        self.settings.setdefault(table, []).append(Setting(key, value, note))

    def password(self, note: str) -> str:
        """The variable that will hold the pool's password; the password itself is written nowhere."""
        variable = re.sub(r"\W", "_", f"SHARDPROXY_{self.plain_name}_PASSWORD".upper(), flags=re.ASCII)
        self.set("pool", "password_env", variable, note)
        return variable

    @property
    def plain_name(self) -> str:
        """The pool's name as shardproxy allows it, and as a file may be called."""
        return re.sub(r"[^A-Za-z0-9_-]", "-", self.name)[:64] or "main"


MEMCACHED_CLIENTS = (
    "clients that speak memcached's protocol: here they speak Redis's (RESP), docs/memcached.md says which "
    "commands; values and flags on the nodes are those that memcached clients read and write"
)
TABLES = ("", "limits", "users", "pool", "pool.health", "pool.shards")


def written(draft: Draft) -> str:
    """The text of a shardproxy.toml. Raises ConfigError: it would be none that shardproxy accepts."""
    lines = [*comment(f"shardproxy.toml, made by `shardproxy import` from {draft.source}.")]
    if draft.name != draft.plain_name:
        lines += comment(f"Its name there: {text.toml_value(draft.name)}.")
    lines += [line for lost in draft.lost for line in comment(f"NOT CARRIED OVER: {lost}")]
    for table in TABLES:
        if settings := draft.settings.get(table):
            path = table.replace("pool", f"pool.{draft.plain_name}", 1)
            lines += ["", f"[{path}]"] if table else [""]
            for setting in settings:
                lines += [*comment(setting.note), f"{text.toml_key(setting.key)} = {toml(setting.value)}"]
    content = "\n".join(lines) + "\n"
    # `secrets=False`: the password's variable is not set where this runs
    load(Source(f"{draft.source}, as shardproxy.toml", content.encode()), secrets=False)
    return content


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{text.toml_key(key)} = {toml(each)}" for key, each in value.items()) + " }"
    return text.toml_value(value)


def comment(note: str) -> Iterator[str]:
    """Lines of a comment; whatever the other file had in it, no more than a comment."""
    plain = "".join(each if each.isprintable() else "?" for each in note)
    return (f"# {line}" for line in textwrap.wrap(plain, WIDTH - 2, break_on_hyphens=False))


def drafts(file: str, content: bytes) -> list[Draft]:
    """The pools of a nutcracker.yml or a mcrouter configuration; which it is shows in its first character.

    Raises ConfigError with every mistake. ModuleNotFoundError: PyYAML is not installed.
    """
    from shardproxy.config.imports import mcrouter, nutcracker

    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise wrong(file, "no text", "UTF-8") from None
    if decoded.lstrip().startswith(("{", "//", "/*")):
        found = mcrouter.drafts(file, decoded)
    else:
        found = nutcracker.drafts(file, decoded)
    if not found:
        raise wrong(file, "no pool", "at least one")
    names: dict[str, str] = {}
    for draft in found:
        if (first := names.setdefault(draft.plain_name, draft.name)) != draft.name:
            raise wrong(file, f"pools {first} and {draft.name}", "names that differ in letters or digits")
    return found


def node_url(protocol: str, address: str) -> str:
    """protocol: "redis" or "memcached"; address: "HOST:PORT" or "/PATH"."""
    if not address.startswith("/"):
        return f"{protocol}://{address}"
    return f"unix://{address}" if protocol == "redis" else f"memcached+unix://{address}"


def wrong(where: str, found: str, expected: str) -> ConfigError:
    return ConfigError([Mistake(where, found, expected)])


class Reader:
    """Gathers mistakes; `where` is a path of keys in the file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.mistakes: list[Mistake] = []

    def mistake(self, where: str, found: object, expected: str) -> None:
        shown = text.shown(where.rpartition(".")[2], found)
        self.mistakes.append(Mistake(f"{self.file}: {where}" if where else self.file, shown, expected))

    def done(self) -> None:
        if self.mistakes:
            raise ConfigError(self.mistakes)


join = tables.join

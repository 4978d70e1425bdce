"""Tables of a TOML file ↔ records, for any records: this module knows no option by name.

A record is a msgspec struct; the annotations of its fields are all there is to know of an option: type,
bounds, help, how it is read and written. Reading goes field by field, so that every mistake is found.
"""

import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from shardproxy.config.text import Secret, shown, toml_key, toml_value


class Rule(NamedTuple):
    """What several options may not say together; shown at the first of `keys`."""

    keys: tuple[str, ...]
    broken: Callable[[Any], bool | str]  # a text: what was found
    allowed: str


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""

    not_yet: ClassVar[Mapping[str, str]] = {}  # keys of the design that are refused until they are built
    rules: ClassVar[tuple[Rule, ...]] = ()
    short: ClassVar[str] = ""  # a table of which only this is said may be written as its value alone

    @classmethod
    def prepare(cls, table: Any) -> Any:
        """A shorter way to write the table → the table."""
        return table


class Mistake(NamedTuple):
    where: str  # "shardproxy.toml: pool.main.timeout"
    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; expected {self.allowed}"


class ConfigError(Exception):
    """A configuration with mistakes: all of them, a line each."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = mistakes


class Option(NamedTuple):
    """A field of a record, its annotations taken apart."""

    key: str
    hint: Any  # what msgspec checks: type and bounds
    type: Any  # the type alone: of `X | None`, X
    default: Any  # msgspec.NODEFAULT: required
    help: str
    meta: list[Meta]

    @property
    def extra(self) -> dict[str, Any]:
        return {key: value for meta in self.meta for key, value in (meta.extra or {}).items()}

    @property
    def example(self) -> Any:
        return next((meta.examples[0] for meta in self.meta if meta.examples), None)

    @property
    def allowed(self) -> str:
        """What may be written, in a few words."""
        if typing.get_origin(self.type) is Literal:
            return "one of " + ", ".join(map(toml_value, typing.get_args(self.type)))
        if typing.get_origin(self.type) is tuple:
            return "a list of " + option_of(self.key, typing.get_args(self.type)[0]).allowed
        words = {bool: "true or false", int: "a whole number"}.get(self.type, "text")
        low = max((meta.ge for meta in self.meta if meta.ge is not None), default=None)
        high = min((meta.le for meta in self.meta if meta.le is not None), default=None)
        bounds = "" if low is None else f", from {self.write(low)} to {self.write(high)}"
        return f"{self.extra.get('allowed', words)}{bounds}"

    def write(self, value: Any) -> str:
        """As the file would write it."""
        write = self.extra.get("write")
        return toml_value(write(value) if write else value)


@functools.cache
def options(record: type[Record]) -> dict[str, Option]:
    """The options of a table, in the order of its record."""
    return {
        field.name: option_of(field.name, field.type, default_of(field))
        for field in msgspec.structs.fields(record)
    }


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def option_of(key: str, hint: Any, default: Any = msgspec.NODEFAULT) -> Option:
    """Unwraps Annotated[Annotated[X, meta] | None, meta, "help"]."""
    kind, notes = hint, []
    while True:
        if typing.get_origin(kind) is Annotated:
            notes += kind.__metadata__
            kind = kind.__origin__
        elif NoneType in (args := typing.get_args(kind)) and typing.get_origin(kind) in (Union, UnionType):
            kind = next(arg for arg in args if arg is not NoneType)
        else:
            break
    text = next((note for note in notes if isinstance(note, str)), "")
    return Option(key, hint, kind, default, text, [note for note in notes if isinstance(note, Meta)])


def inner(option: Option) -> type[Record] | None:
    """The record below an option: a table, or each of a table of tables by name."""
    kind = typing.get_args(option.type)[1] if typing.get_origin(option.type) is dict else option.type
    return kind if isinstance(kind, type) and issubclass(kind, Record) else None


def is_leaf(record: type[Record] | None) -> bool:
    return record is not None and not any(inner(option) for option in options(record).values())


def homes(record: type[Record], where: str = "") -> dict[str, str]:
    """Every option's name → the table where it belongs, outer tables first."""
    below: dict[str, str] = {}
    for key, option in options(record).items():
        if kind := inner(option):
            path = join(where, key) + (".NAME" if typing.get_origin(option.type) is dict else "")
            below |= {name: home for name, home in homes(kind, path).items() if name not in below}
    return below | dict.fromkeys(options(record), f"[{where}]" if where else "the top of the file")


class Reader:
    """Reads records from tables and gathers mistakes; `where` is a path of keys, "" at the top."""

    def __init__(self, file: str, root: type[Record]) -> None:
        self.file = file
        self.root = root
        self.mistakes: list[Mistake] = []

    def mistake(self, where: str, found: str, allowed: str) -> Any:
        """Takes note; returns None, for the callers that must return a value."""
        self.mistakes.append(Mistake(f"{self.file}: {where}" if where else self.file, found, allowed))

    def record(self, record: type[Record], table: Any, where: str = "") -> Any:
        """The record, with defaults for what is wrong; None when what is required is missing or wrong."""
        known = options(record)
        table = record.prepare(table)
        if not isinstance(table, dict):
            short = f"{known[record.short].allowed}, or " if record.short else ""
            return self.mistake(where, shown(where, table), f"{short}a table")
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key in known:
                values[key] = self.value(known[key], value, join(where, key))
            else:
                self.unknown(record, key, where)
        wrong = {key for key, value in values.items() if value is None}
        for key, option in known.items():
            if option.default is msgspec.NODEFAULT and values.get(key) is None:
                return None if key in wrong else self.mistake(join(where, key), "nothing", option.allowed)
        made = record(**{key: value for key, value in values.items() if key not in wrong})
        for rule in record.rules:
            if wrong.isdisjoint(rule.keys) and (found := rule.broken(made)):
                if not isinstance(found, str):
                    said = [f"{key} = {known[key].write(getattr(made, key))}" for key in rule.keys]
                    found = " with ".join(said)
                self.mistake(join(where, rule.keys[0]), found, rule.allowed)
        return made

    def value(self, option: Option, value: Any, where: str) -> Any:
        """The value as the record holds it; None when it is wrong."""
        origin, args = typing.get_origin(option.type), typing.get_args(option.type)
        if origin is dict:
            return self.named(option, args[1], value, where)
        if kind := inner(option):
            return self.record(kind, value, where)
        if origin is tuple:
            if not isinstance(value, list):
                return self.mistake(where, shown(option.key, value), option.allowed + ", in [ ]")
            item = option_of(option.key, args[0])
            read_all = tuple(
                self.value(item, each, f"{where}[{number}]") for number, each in enumerate(value)
            )
            return None if None in read_all else read_all
        try:
            read = option.extra.get("read")
            return msgspec.convert(read(value) if read else value, option.hint)
        except msgspec.ValidationError:
            hint = suggestion(value, [arg for arg in args if isinstance(arg, str)])
            return self.mistake(where, shown(option.key, value), option.allowed + hint)
        except ValueError as error:
            return self.mistake(where, shown(option.key, value), str(error))

    def named(self, option: Option, record: type[Record], table: Any, where: str) -> Any:
        """A table of tables by name: dict[str, Record] of those that can be; None when none can."""
        if not isinstance(table, dict):
            return self.mistake(where, shown(where, table), "a table")
        made = {}
        for name, each in table.items():
            try:
                option.extra["name"]["read"](name)
            except ValueError as error:
                self.mistake(join(where, name), toml_value(name), str(error))
            if (one := self.record(record, each, join(where, name))) is not None:
                made[name] = one
        return made if made or not table else None

    def unknown(self, record: type[Record], key: str, where: str) -> None:
        """An unknown key, never with its value: it may be a password whose key is misspelt."""
        known = list(options(record))
        if key in record.not_yet:
            found, allowed = f"{record.not_yet[key]}, not supported yet", "this key left out"
        else:
            known_homes = homes(self.root)
            elsewhere = f" (it belongs in {known_homes[key]})" if key in known_homes else ""
            found, allowed = (
                "an unknown key",
                f"one of {', '.join(known)}{elsewhere or suggestion(key, known)}",
            )
        self.mistake(join(where, key), found, allowed)


class Difference(NamedTuple):
    """An option that two records say differently; "" where it is in one of them only."""

    where: str
    before: str
    after: str

    def __str__(self) -> str:
        if not self.before or not self.after:
            return f"{self.where} {'added' if self.after else 'removed'}"
        if self.before == self.after:
            return f"{self.where} changed"  # in what is not shown
        return f"{self.where}: {self.before} → {self.after}"


def differences(old: Record, new: Record, path: str = "") -> Iterator[Difference]:
    """What is not the same, option by option; never a secret's value."""
    for key, option in options(type(old)).items():
        before, after, where = getattr(old, key), getattr(new, key), join(path, key)
        if before == after:
            continue
        if isinstance(before, Record):
            yield from differences(before, after, where)
        elif inner(option):
            for name in before | after:
                inside = join(where, name)
                if name in before and name in after:
                    yield from differences(before[name], after[name], inside)
                else:
                    yield Difference(inside, "there" * (name in before), "there" * (name in after))
        else:
            yield Difference(where, in_words(option, before), in_words(option, after))


def in_words(option: Option, value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str) and "://" in value and option.extra.get("secret_path"):
        return f"a URL at {urlsplit(value).hostname}"
    return "a password" if option.type is Secret else option.write(value)


def suggestion(found: object, known: list[str]) -> str:
    if not isinstance(found, str):
        return ""
    import difflib  # slow to import, and for mistakes alone

    near = difflib.get_close_matches(found, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def join(where: str, key: str) -> str:
    return f"{where}.{toml_key(key)}" if where else toml_key(key)


def toml(record: Record, path: str = "", *, commented: bool = False) -> str:
    """The record as a table of a file, and the tables below it; `commented`: with help.

    A secret is never written. What is None is written as a comment, with an example of it.
    """
    lines = [f"[{path}]"] if path else []
    below = []
    for key, option in options(type(record)).items():
        value, inside = getattr(record, key), join(path, key)
        if isinstance(value, Record):
            below.append(toml(value, inside, commented=commented))
        elif inner(option) and is_leaf(inner(option)):
            below.append(leaves_toml(option, value, inside, commented))
        elif inner(option):
            below += [toml(each, join(inside, name), commented=commented) for name, each in value.items()]
        else:
            value = option.default if commented else value
            if commented:
                choice = typing.get_origin(option.type) is Literal
                lines.append(f"# {option.help} ({option.allowed})" if choice else f"# {option.help}")
            lines.append(assignment(option, value))
    return "\n".join(lines) + "\n" + "".join(f"\n{part}" for part in below)


def assignment(option: Option, value: Any) -> str:
    mark = "# " if value is None or option.type is Secret else ""
    return f"{mark}{option.key} = {option.write(option.example if value is None else value)}"


def leaves_toml(option: Option, records: Mapping[str, Record], path: str, commented: bool) -> str:
    """A table of records by name that have no tables below: a line each."""
    lines = [f"[{path}]"]
    if commented and (kind := inner(option)):
        lines.append(f"# {option.help}. The table's options:")
        for each in options(kind).values():
            value = each.example if each.default in (None, msgspec.NODEFAULT) else each.default
            lines.append(f"#   {each.key} = {each.write(value)}   # {each.help}")
    for name, record in records.items():
        said = {
            key: each.write(getattr(record, key))
            for key, each in options(type(record)).items()
            if getattr(record, key) != each.default and each.type is not Secret
        }
        table = "{ " + ", ".join(f"{key} = {value}" for key, value in said.items()) + " }"
        alone = set(said) == {record.short}
        lines.append(f"{toml_key(name)} = {said[record.short] if alone else table}")
    return "\n".join(lines) + "\n"


def markdown(record: type[Record], path: str = "") -> str:
    """Every option of a record and of those below, as tables of Markdown."""
    title = f"`[{path}]`" if path else "The top of the file"
    text = f"### {title}\n\n{record.__doc__}\n\n| option | default | allowed | |\n|---|---|---|---|\n"
    below = ""
    for key, option in options(record).items():
        if kind := inner(option):
            below += "\n" + markdown(kind, join(path, key) + (".NAME" if kind is not option.type else ""))
            continue
        default = "required" if option.default is msgspec.NODEFAULT else ""
        if not default and option.default is not None:
            default = f"`{option.write(option.default)}`"
        text += f"| `{key}` | {default} | {option.allowed} | {option.help} |\n"
    return text + below

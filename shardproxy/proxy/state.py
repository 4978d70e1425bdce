"""The last good configuration, kept on disk for a start when its file is broken.

Owns the state file (`state` in the configuration): the text as it was loaded, and which shards were drained.
Rules: it is replaced in one step and only its owner may read it (the text may hold passwords); what was not
written by us, or by a newer version of us, is neither used nor written over.
"""

import contextlib
import os
import tomllib
from collections.abc import Mapping

import msgspec

from shardproxy import __version__
from shardproxy.config import Config, Source, load
from shardproxy.proxy import start_errors

FORMAT = 1
MARK = "shardproxy state"


class StateError(Exception):
    """The state file cannot be used; the text says why and what to do."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What the file holds, as JSON. `kind` and `format` stay what they are in every version."""

    kind: str
    format: int
    by: str = ""  # the version that wrote it
    drained: dict[str, list[str]] = {}  # shards by pool
    text: str = ""


class _Head(msgspec.Struct, frozen=True):
    kind: str
    format: int
    by: str = ""


def read(path: str) -> Kept | None:
    """What is kept there; None: no such file. Raises StateError."""
    try:
        with open(path, "rb") as file:
            content = file.read()
        head = msgspec.json.decode(content, type=_Head)
        if head.kind != MARK:
            raise StateError(start_errors.not_state(path))
        if head.format > FORMAT:
            raise StateError(start_errors.newer_state(path, head.by))
        return msgspec.json.decode(content, type=Kept)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path}: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):  # a ValidationError is a DecodeError
        raise StateError(start_errors.not_state(path)) from None


def last_good(file: str) -> Config | None:
    """What is kept for a file that is broken; None: nothing. Raises StateError, ConfigError."""
    try:
        with open(file, "rb") as opened:
            path = named_in(opened.read())
    except OSError:
        return None
    kept = read(path) if path else None
    if kept is None:
        return None
    readable = bool(os.stat(path).st_mode & 0o044)
    return load(Source(path, kept.text.encode(), readable))


def keep(path: str, text: bytes, drained: Mapping[str, tuple[str, ...]]) -> None:
    """Replaces the file. Raises StateError, also when what is there is not ours."""
    kept = Kept(
        kind=MARK,
        format=FORMAT,
        by=__version__,
        drained={pool: list(shards) for pool, shards in drained.items()},
        text=text.decode("utf-8-sig"),
    )
    if read(path) != kept:
        replace(path, msgspec.json.encode(kept))


def replace(path: str, content: bytes) -> os.stat_result:
    """Writes a file in one step, only its owner may read it; returns what `stat` says. Raises StateError."""
    beside = f"{path}.{os.getpid()}.new"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        made = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(made, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                made_so = os.fstat(file.fileno())
            os.replace(beside, path)
            return made_so
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as error:
        raise StateError(f"{path}: {error.strerror or error}") from None


def named_in(content: bytes) -> str:
    """The `state` of a configuration too broken to be loaded; "" when there is none to be found.

    Read as TOML, else line by line up to the first table.
    """
    text = content.decode(errors="replace")
    with contextlib.suppress(tomllib.TOMLDecodeError, RecursionError):
        return _path(tomllib.loads(text))
    for line in text.splitlines():
        if line.lstrip().startswith("["):
            break
        with contextlib.suppress(tomllib.TOMLDecodeError, RecursionError):
            if found := _path(tomllib.loads(line)):
                return found
    return ""


def _path(table: Mapping[str, object]) -> str:
    found = table.get("state")
    return found if isinstance(found, str) and found.startswith("/") else ""

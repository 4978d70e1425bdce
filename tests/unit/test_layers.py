"""Arrows point down only (docs/ARCHITECTURE.md, Layers), and the page's map has a line for every module."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "shardproxy"
# From the top; an import goes to a layer further right, or stays. `config` and `core` are for everything.
LAYERS = ["cli", "admin", "proxy", "handlers", "dataplane", "core"]
SURFACES = {"client", "sessions"}  # beside the proxy: they import core; the command line may use them
NOT_IN_CORE = {"asyncio", "socket", "time", "random", "os", "logging"}
CIMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+c?import\b|c?import[ \t]+([\w.]+))", re.MULTILINE)


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyx", ".pxd", ".pyi"))


def layer(name: str) -> str:
    """The layer of a module of ours: "core" of "shardproxy.core.ring", "config", "" of the package itself."""
    return [*name.split("."), ""][1]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Full names of what a module imports, in functions too; not what is only for the type checker."""
    text = path.read_text()
    if path.suffix in (".pyx", ".pxd"):
        yield from (found[1] or found[2] for found in CIMPORT.finditer(text))
        return
    pending: list[ast.AST] = [ast.parse(text)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            yield str(node.module)
            if node.module == "shardproxy":
                yield from (f"shardproxy.{alias.name}" for alias in node.names)
        pending += ast.iter_child_nodes(node)


def allowed(source: str, target: str) -> bool:
    """May a module of one layer import one of another?"""
    if source == target or target in ("core", "config", "", "__version__"):
        # core's `config` is for the type checker only: it is given records, and never reads a file
        return not (source == "core" and target == "config")
    if source in ("", "__main__"):
        return target == "cli" or source == ""  # the package's own names are imported when they are asked for
    if source == "cli" and target in SURFACES:
        return True
    if source not in LAYERS or target not in LAYERS:
        return False
    return LAYERS.index(source) < LAYERS.index(target)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    source = layer(name_of(path))
    wrong = [
        name
        for name in imports(path)
        if name.split(".")[0] == "shardproxy" and not allowed(source, layer(name))
    ]
    assert not wrong, f"{name_of(path)} imports {wrong}"


@pytest.mark.parametrize(
    "path", [path for path in modules() if layer(name_of(path)) == "core"], ids=lambda path: path.name
)
def test_core_knows_no_clock_no_chance_and_no_world(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & NOT_IN_CORE


def test_the_map_names_every_module() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    found = re.search(r"^## Every module in a line\n(.*)", text, re.MULTILINE | re.DOTALL)
    assert found, "docs/ARCHITECTURE.md has no map"
    named = set(re.findall(r"^\| `([\w/]+)`", found[1], re.MULTILINE))
    here = {
        str(path.relative_to(PACKAGE).with_suffix(""))
        for path in modules()
        if path.name != "__init__.py"
        and (path.suffix in (".py", ".pyx") or not path.with_suffix(".pyx").exists())
    }
    assert not here - named, f"without a line in the map: {sorted(here - named)}"
    assert not named - here, f"in the map and gone: {sorted(named - here)}"


def test_these_tests_can_fail() -> None:
    assert not allowed("core", "config")
    assert not allowed("core", "dataplane")
    assert not allowed("dataplane", "handlers")
    assert not allowed("handlers", "proxy")
    assert not allowed("config", "proxy")
    assert allowed("cli", "core") and allowed("proxy", "handlers") and allowed("handlers", "config")
    assert list(imports(PACKAGE / "core" / "ring.pyx"))

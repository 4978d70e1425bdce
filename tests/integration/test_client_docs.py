"""The examples of the client library's pages are run, and give what they say."""

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import MemcachedNode, ProxyProcess, RedisNode, shards_of, toml

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (
    "client",
    "client-asyncio",
    "client-from-redis-py",
    "client-from-rediscluster",
    "client-from-pymemcache",
    "proxy-or-library",
)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
GIVES = re.compile(r"^(\S.*?)  # → (.*)$", re.MULTILINE)


def runnable(page: str) -> str:
    """All blocks as one program; a line that gives something checks it."""
    text = "\n".join(BLOCK.findall((DOCS / f"{page}.md").read_text()))
    return GIVES.sub(lambda found: f"check({found[1]}, {found[2]!r}, {found[1]!r})", text)


def check(value: Any, wanted: str, line: str) -> None:
    assert repr(value) == wanted, f"{line}: {value!r}, not {wanted}"


@pytest.fixture(scope="module")
def memcacheds() -> Iterator[list[MemcachedNode]]:
    with MemcachedNode() as one, MemcachedNode() as two, MemcachedNode() as three:
        yield [one, two, three]


@pytest.fixture
def where(
    nodes3: list[RedisNode], memcacheds: list[MemcachedNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """The pages' addresses → those of servers; shardproxy.toml is in the current directory."""
    for node in nodes3:
        with node.raw() as raw:
            raw.ask("FLUSHALL")
    monkeypatch.chdir(tmp_path)
    config = toml(shards_of(nodes3)).replace(f'c = "redis://{nodes3[2].address}"', "")
    config += f'c = {{ primary = "redis://{nodes3[2].address}", weight = 2 }}\n'
    Path("shardproxy.toml").write_text(config)
    nodes = zip((7001, 7002, 7003, 7011, 7012, 7013), (*nodes3, *memcacheds), strict=True)
    found = {f"127.0.0.1:{port}": node.address for port, node in nodes}
    with ProxyProcess(toml(shards_of(nodes3))) as proxy:
        yield {**found, "port=6380": f"port={proxy.port}"}


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_run(page: str, where: dict[str, str]) -> None:
    program = runnable(page)
    ports = {name.rpartition(":")[2]: address.rpartition(":")[2] for name, address in where.items()}
    program = re.sub(r"\b70[01][123]\b", lambda found: ports[found[0]], program)
    program = program.replace("port=6380", where["port=6380"])
    program = program.replace("127.0.0.1:6380", "127.0.0.1:" + where["port=6380"].removeprefix("port="))
    assert "check(" in program
    code = compile(program, f"{page}.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if inspect.isawaitable(running := eval(code, {"check": check})):
        asyncio.run(running)  # type: ignore[arg-type]  # it is a coroutine


def test_a_wrong_example_is_found() -> None:
    with pytest.raises(AssertionError):
        check(1, "2", "1")

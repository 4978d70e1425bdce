"""The proxy as a process and inside a program: listening, learning, nodes down, draining, bad input."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest
from impostors import Relay, SomethingElse
from servers import (
    ProxyProcess,
    Raw,
    RedisNode,
    free_port,
    pack,
    redis_nodes,
    shards_of,
    toml,
    until,
)

from shardproxy import config
from shardproxy.proxy import listeners
from shardproxy.proxy.server import Proxy, StartError


def shown(raw: Raw, *args: str) -> object:
    return json.loads(raw.value("PROXY", *args))


# --- the whole thing, as a process ---


def test_keys_land_on_the_shard_that_locate_names(proxy: ProxyProcess, nodes3: list[RedisNode]) -> None:
    ports = {node.address: node for node in nodes3}
    with proxy.raw() as raw:
        for number in range(30):
            key = f"where:{number}"
            assert raw.ask("SET", key, number) == b"+OK\r\n"
            place = shown(raw, "LOCATE", key)
            assert isinstance(place, dict)
            with ports[place["address"]].raw() as direct:
                assert direct.value("GET", key) == str(number)


def test_info_and_nodes_show_what_the_nodes_are(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        until(lambda: [n["state"] for n in shown(raw, "NODES")] == ["up"] * 3, "all nodes up")  # type: ignore[attr-defined]
        info = raw.value("INFO")
        assert "redis_version:7.0.15\r\n" in info
        assert f"process_id:{proxy.pid}\r\n" in info
        assert f"tcp_port:{proxy.port}\r\n" in info
        before = shown(raw, "INFO")
        raw.ask("GET", "x")
        after = shown(raw, "INFO")
        assert isinstance(before, dict) and isinstance(after, dict)
        assert after["counters"]["commands"] - before["counters"]["commands"] == 2


def test_client_list_shows_names(proxy: ProxyProcess) -> None:
    with proxy.raw() as one, proxy.raw() as two:
        one.ask("CLIENT", "SETNAME", "first")
        mine = one.value("CLIENT", "ID")
        line = next(each for each in two.value("CLIENT", "LIST").splitlines() if "name=first" in each)
        assert f"id={mine} addr=127.0.0.1:{one.socket.getsockname()[1]} " in line
        assert f"laddr=127.0.0.1:{proxy.port} " in line


def test_no_reply_comes_for_reply_off(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        raw.send(b"".join([
            b"CLIENT REPLY OFF\r\n", b"PING\r\n", b"SET off 1\r\n", b"CLIENT REPLY ON\r\n",
            b"CLIENT REPLY SKIP\r\n", b"GET off\r\n", b"GET off\r\n",
        ]))  # fmt: skip
        assert raw.frames(2) == [b"+OK\r\n", b"$1\r\n1\r\n"]
        assert raw.ask("PING") == b"+PONG\r\n"


def test_quit_answers_what_came_before_and_closes(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        raw.send(b"SET quit 1\r\nGET quit\r\nQUIT\r\nGET quit\r\n")
        assert raw.rest() == b"+OK\r\n$1\r\n1\r\n+OK\r\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(number: int) -> None:
    with redis_nodes(1) as nodes, ProxyProcess(toml(shards_of(nodes), pool='timeout = "10s"')) as process:
        with process.raw() as raw, process.raw() as idle:
            raw.ask("SET", "k", "v")
            idle.ask("PING")
            nodes[0].pause()
            raw.send(b"GET k\r\n" * 3)
            until(lambda: _in_flight(process) == 3, "the requests to be in flight")
            process.signal(number)
            assert idle.rest() == b""  # has nothing in flight: goes at once
            until(lambda: not _listens(process.port), "it to stop listening")
            nodes[0].resume()
            assert raw.rest() == b"$1\r\nv\r\n" * 3
        assert process.wait() == 0
        assert process.events("stopped")[0]["clean"] is True


def _in_flight(process: ProxyProcess) -> int:
    with process.raw() as raw:
        nodes = shown(raw, "NODES")
        assert isinstance(nodes, list)
        return sum(node["in_flight"] for node in nodes)


def _listens(port: int) -> bool:
    try:
        Raw(port).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_connection_that_is_lost_while_draining_is_made_again_for_what_waits() -> None:
    nothing = (b"\0\1\2", b"\0\1\2")
    with (
        RedisNode() as node,
        Relay(node.port, nothing, nothing) as relay,
        ProxyProcess(toml({"a": relay.address}, pool='timeout = "1m"')) as process,
        process.raw() as raw,
    ):
        assert raw.ask("SET", "k", "v") == b"+OK\r\n"
        node.pause()
        raw.send(pack("GET", "k"))
        until(lambda: _in_flight(process) == 1, "the request to be in flight")
        process.signal(signal.SIGTERM)
        until(lambda: not _listens(process.port), "it drains")
        for each in relay.sockets[1:]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        node.resume()
        assert raw.frame() == b"$1\r\nv\r\n"
        assert process.wait() == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with redis_nodes(1) as nodes, ProxyProcess(toml(shards_of(nodes), pool='timeout = "60s"')) as process:
        with process.raw() as raw:
            raw.ask("SET", "k", "v")
            nodes[0].pause()
            raw.send(b"GET k\r\n")
            until(lambda: _in_flight(process) == 1, "the request to be in flight")
            process.signal(signal.SIGTERM)
            until(lambda: process.events("draining"), "the drain")
            process.signal(signal.SIGTERM)
            assert process.wait() == 1
        nodes[0].resume()


def test_a_port_in_use_is_one_clear_error() -> None:
    with redis_nodes(1) as nodes:
        process = ProxyProcess(toml(shards_of(nodes), listen=[nodes[0].address])).launch()
        try:
            assert process.wait() == 1
            text = process.log_text()
            assert f"cannot listen on {nodes[0].address}" in text
            assert "listen elsewhere" in text
            assert len(text.splitlines()) == 1
        finally:
            process.stop()


# --- bad input: one clear error, and nobody else notices ---


def test_bad_commands_get_redis_own_errors(proxy: ProxyProcess, redis: RedisNode) -> None:
    with proxy.raw() as ours, redis.raw() as theirs:
        for args in (
            *(["NOSUCH"], ["NOSUCH", "a", "b"], ["GET"], ["CLIENT", "NOSUCH"], ["SET", "a"], ["CLIENT"]),
            *(
                ["x" * 200, "y" * 300, "z"],
                ["A\0B", "c\r\nd"],
                ["é", "è"],
                ["CLIENT", "F\r\nO"],
                ["COMMAND", ""],
            ),
        ):
            assert ours.ask(*args) == theirs.ask(*args), args
        assert ours.ask("PING") == b"+PONG\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
    ],
)
def test_an_http_request_is_closed_with_a_reason(request_: bytes, proxy: ProxyProcess) -> None:
    with proxy.raw() as other, proxy.raw() as raw:
        raw.send(request_)
        said = raw.rest()
        assert b"HTTP" in said
        assert said.startswith(b"-")
        assert other.ask("PING") == b"+PONG\r\n"


@pytest.mark.parametrize(
    "garbage",
    [b"*1\r\n:1\r\n", b"*-5x\r\n", b"*1\r\n$-2\r\n", b"*99999999999999\r\n", b"*1\r\n$99999999999\r\n"],
)
def test_garbage_is_closed_with_a_reason(garbage: bytes, proxy: ProxyProcess) -> None:
    with proxy.raw() as other, proxy.raw() as raw:
        raw.send(b"PING\r\n" + garbage)
        said = raw.rest()
        assert said.startswith(b"+PONG\r\n-ERR ")
        assert other.ask("PING") == b"+PONG\r\n"


def test_protected_mode_turns_away_other_machines(nodes3: list[RedisNode]) -> None:
    """Asked from an address of this machine that is not loopback, which looks like another machine's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 9))  # sends nothing; the kernel chooses our address
        except OSError:
            pytest.fail("this test needs a network interface beside the loopback one")
        mine = probe.getsockname()[0]
    for protected in (True, False):
        text = toml(shards_of(nodes3), listen=["0.0.0.0:0"], top=f"protected_mode = {str(protected).lower()}")
        with ProxyProcess(text) as process:
            with Raw((mine, process.port)) as raw:
                said = raw.rest() if protected else raw.ask("PING")
            assert said.startswith(b"-DENIED " if protected else b"+PONG\r\n")
            with process.raw() as raw:
                assert raw.ask("PING") == b"+PONG\r\n"


# --- nodes ---


def test_it_starts_with_nodes_down_and_serves_them_when_they_come() -> None:
    port = free_port()
    with redis_nodes(1) as nodes:
        late = RedisNode(port=port)
        shards = shards_of([*nodes, late])
        with ProxyProcess(toml(shards)) as process, process.raw() as raw:
            places = shown(raw, "LOCATE", *[f"k{n}" for n in range(20)])
            assert isinstance(places, list)
            up, down = (next(p for p in places if p["shard"] == shard) for shard in "ab")
            assert raw.ask("SET", up["key"], "1") == b"+OK\r\n"
            error = raw.ask("SET", down["key"], "1")
            until(lambda: raw.ask("SET", down["key"], "1").startswith(b"-SHARDDOWN "), "SHARDDOWN")
            error = raw.ask("SET", down["key"], "1")
            assert b"'b'" in error and late.address.encode() in error
            assert shown(raw, "NODES")[1]["state"] == "out"  # type: ignore[index]
            late.start()
            try:
                until(lambda: raw.ask("SET", down["key"], "1") == b"+OK\r\n", "the node to be served")
                until(lambda: shown(raw, "NODES")[1]["version"], "the version to be learnt")  # type: ignore[index]
                until(lambda: shown(raw, "NODES")[1]["state"] == "up", "it to be up")  # type: ignore[index]
            finally:
                late.stop()


@pytest.mark.parametrize(
    ("answer", "quoted"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.1 400"),
        (b"ERROR\r\n", "ERROR"),
        (b"SSH-2.0-x\r\n", "SSH-2.0"),
    ],
)
def test_a_node_that_is_not_redis_is_named_with_what_it_said(answer: bytes, quoted: str) -> None:
    with SomethingElse(answer) as other, ProxyProcess(toml({"a": other.address})) as process:
        event = until(lambda: process.events("node_refuses"), "the event")[0]
        assert event["node"] == other.address
        assert "not a Redis server" in event["reason"]
        assert quoted in event["reason"]
        with process.raw() as raw:
            node = shown(raw, "NODES")[0]  # type: ignore[index]
            assert quoted in node["error"]
            assert raw.ask("GET", "k")[:1] == b"-"
            assert raw.ask("PING") == b"+PONG\r\n"


def test_what_a_node_adds_to_the_commands_is_learnt() -> None:
    """A Redis that has a GETDEL called GETFOO, as far as anybody can see."""
    with (
        RedisNode() as node,
        Relay(node.port, up=(b"GETFOO", b"GETDEL"), down=(b"getdel", b"getfoo")) as relay,
        ProxyProcess(toml({"a": relay.address})) as process,
        process.raw() as raw,
    ):
        until(lambda: raw.value("PROXY", "COMMANDS", "getfoo") != "[]", "GETFOO to be known")
        assert raw.ask("SET", "k", "v") == b"+OK\r\n"
        assert raw.ask("GETFOO", "k") == b"$1\r\nv\r\n"
        assert raw.ask("GETFOO", "k") == b"$-1\r\n"
        assert raw.value("COMMAND", "GETKEYS", "GETFOO", "k") == ["k"]


def test_a_nodes_password_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_PASSWORD", "hunter2")
    with RedisNode("--requirepass", "hunter2") as node:
        text = toml({"a": node.address}, pool='password_env = "NODE_PASSWORD"')
        with ProxyProcess(text) as process, process.raw() as raw:
            assert raw.ask("SET", "k", "v") == b"+OK\r\n"
            until(lambda: shown(raw, "NODES")[0]["version"], "the version to be learnt")  # type: ignore[index]
            for what in ("INFO", "NODES", "TOPOLOGY", "COMMANDS"):
                assert b"hunter2" not in raw.ask("PROXY", what)
            assert "hunter2" not in process.log_text()


def test_a_wrong_password_is_said_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_PASSWORD", "swordfish")
    with RedisNode("--requirepass", "hunter2") as node:
        text = toml({"a": node.address}, pool='password_env = "NODE_PASSWORD"')
        with ProxyProcess(text) as process, process.raw() as raw:
            event = until(lambda: process.events("node_refuses"), "the event")[0]
            assert "refuses the login" in event["reason"]
            assert "WRONGPASS" in event["reason"]
            until(lambda: raw.ask("GET", "k").startswith(b"-SHARDDOWN "), "SHARDDOWN")
            assert b"swordfish" not in raw.ask("GET", "k") + raw.ask("PROXY", "NODES")
            assert "swordfish" not in process.log_text()


# --- listening, inside a program ---


def config_of(listen: list[str], shards: dict[str, str] | None = None, **options: object) -> config.Config:
    pool = config.PoolConfig(
        shards={
            name: config.ShardConfig(primary=f"redis://{address}")
            for name, address in (shards or {"a": "127.0.0.1:1"}).items()
        }
    )
    return config.Config(listen=tuple(listen), pool={"main": pool}, log=config.Log(level="error"), **options)  # type: ignore[arg-type]


async def talk(where: tuple[str, int] | str, data: bytes) -> bytes:
    opened = (
        asyncio.open_unix_connection(where) if isinstance(where, str) else asyncio.open_connection(*where)
    )
    reader, writer = await opened
    writer.write(data)
    writer.write_eof()
    found = await reader.read()
    writer.close()
    return found


async def test_it_listens_where_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    async with Proxy(config_of(["127.0.0.1:0", "[::1]:0", f"unix://{path}"])) as proxy:
        four, six, unix = proxy.addresses
        assert await talk(("127.0.0.1", int(four.rpartition(":")[2])), b"PING\r\n") == b"+PONG\r\n"
        assert six.startswith("[::1]:")
        assert await talk(("::1", int(six.rpartition(":")[2])), b"PING\r\n") == b"+PONG\r\n"
        assert unix == f"unix://{path}"
        assert await talk(str(path), b"PING\r\n") == b"+PONG\r\n"
        assert proxy.tcp_port == int(four.rpartition(":")[2])
    assert not path.exists()


async def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert stat.S_ISSOCK(path.stat().st_mode)
    async with Proxy(config_of([f"unix://{path}"])):
        with pytest.raises(StartError, match="another program"):
            async with Proxy(config_of([f"unix://{path}"])):
                pass
        assert await talk(str(path), b"PING\r\n") == b"+PONG\r\n"
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(StartError, match="not a socket"):
        async with Proxy(config_of([f"unix://{file}"])):
            pass
    assert file.read_text() == "precious"


async def test_who_cannot_listen_everywhere_listens_nowhere() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        port = free_port()
        with pytest.raises(StartError, match=f"127.0.0.1:{taken}"):
            async with Proxy(config_of([f"127.0.0.1:{port}", f"127.0.0.1:{taken}"])):
                pass
        assert not _listens(port)
    with pytest.raises(StartError, match="no interface"):
        listeners.bind("203.0.113.1:0")
    with pytest.raises(StartError, match="cannot listen on no-such-host"):
        listeners.bind("no-such-host.invalid:0")


def test_slots_share_a_port_that_nobody_else_has() -> None:
    listener = listeners.bind("127.0.0.1:0", slots=3)
    try:
        assert len({sock.fileno() for slot in listener.sockets for sock in slot}) == 3
        assert {sock.getsockname()[1] for slot in listener.sockets for sock in slot} == {listener.port}
        # even one of the same user who asks for SO_REUSEPORT too, which the kernel alone would let in
        with pytest.raises(StartError, match="another program"):
            listeners.bind(f"127.0.0.1:{listener.port}", slots=2)
    finally:
        listener.close()


async def test_two_proxies_in_one_program_do_not_meet(nodes3: list[RedisNode]) -> None:
    async with (
        Proxy(config_of(["127.0.0.1:0"], shards_of(nodes3[:1]))) as one,
        Proxy(config_of(["127.0.0.1:0"], shards_of(nodes3[1:2]))) as two,
    ):
        ports = [int(each.addresses[0].rpartition(":")[2]) for each in (one, two)]
        assert await talk(("127.0.0.1", ports[0]), b"SET both 1\r\nCLIENT ID\r\n") == b"+OK\r\n:1\r\n"
        assert await talk(("127.0.0.1", ports[1]), b"EXISTS both\r\nCLIENT ID\r\n") == b":0\r\n:1\r\n"
        assert one.run_id != two.run_id


async def test_leaving_the_block_answers_what_is_in_flight_and_frees_everything(
    nodes3: list[RedisNode],
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with Proxy(config_of(["127.0.0.1:0"], shards_of(nodes3))) as proxy:
        port = int(proxy.addresses[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"SET leave 1\r\nGET leave\r\nCLIENT LIST ID 0\r\n")
        assert await reader.readexactly(len(b"+OK\r\n")) == b"+OK\r\n"
    assert await reader.read() == b"$1\r\n1\r\n$0\r\n\r\n"
    writer.close()
    await writer.wait_closed()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_serve_forever_can_be_cancelled(nodes3: list[RedisNode]) -> None:
    async def main() -> None:
        async with Proxy(config_of(["127.0.0.1:0"], shards_of(nodes3))) as proxy:
            await proxy.serve_forever()

    task = asyncio.create_task(main())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

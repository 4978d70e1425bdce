"""CLIENT TRACKING: the same programs on a plain Redis and through the proxy; and what one Redis has not."""

import re
import time
from collections.abc import Iterator, Sequence

import pytest
from servers import ProxyProcess, Raw, RedisNode, pack, redis_nodes, shards_of, toml, until

NULL = b">2\r\n$10\r\ninvalidate\r\n_\r\n"


def shown(frame: bytes) -> bytes:
    """Without the ids of clients, which differ."""
    return re.sub(rb"(redir-broken|redirect|[\r\n]id)\r\n:[1-9]\d*", rb"\1\r\n:N", frame)


def run(port: int, program: Sequence[str]) -> list[object]:
    """ "NAME COMMAND ..." of clients w, a, t, s and b; @NAME: its id; "NAME close"; "?"."""
    clients = {name: Raw(port) for name in "watsb"}
    ids = {name: raw.ask("CLIENT", "ID")[1:-2] for name, raw in clients.items()}
    found: list[object] = []
    try:
        for step in program:
            if step == "?":
                found += [(name, sorted(map(shown, raw.unasked(0.05)))) for name, raw in clients.items()]
                continue
            name, *args = step.split()
            if args == ["close"]:
                clients.pop(name).close()
                time.sleep(0.1)
                continue
            reply = clients[name].ask(*(ids[arg[1:]] if arg[0] == "@" else arg for arg in args))
            # its own writes may be told to it before they are answered
            rest = clients[name].unasked(0.02) if reply.startswith(b">") else []
            if args[-1] == "GETREDIR" and int(reply[1:-2]) > 0:
                reply = b":N\r\n"
            found.append((step, sorted(map(shown, [reply, *rest]))))
    finally:
        for raw in clients.values():
            raw.close()
    return found


PROGRAMS = {
    "default": """
        a HELLO 3|a CLIENT TRACKING ON|a CLIENT TRACKINGINFO|a CLIENT GETREDIR|a GET k1|w SET k1 v|?
        w SET k1 v2|?|a MGET k1 k2 k3 k4|w MSET k2 x k3 y|?|a GET k5|a SET k5 mine|?|a CLIENT TRACKING OFF
        a CLIENT TRACKINGINFO|w SET k4 x|?|a CLIENT TRACKING ON NOLOOP|a GET k1|a SET k1 me|?|a GET k1
        w SET k1 w|?|a RESET|a CLIENT TRACKINGINFO|a CLIENT GETREDIR""",
    "bcast": """
        a HELLO 3|a CLIENT TRACKING ON BCAST|a CLIENT TRACKINGINFO|w SET k1 1|w SET k2 2|?
        a CLIENT TRACKING ON|a CLIENT TRACKING OFF|a CLIENT TRACKING ON BCAST PREFIX foo PREFIX bar
        w SET foo1 x|w SET bar1 x|w SET k1 x|?|a CLIENT TRACKINGINFO|a CLIENT TRACKING ON BCAST PREFIX fo
        a CLIENT TRACKING ON BCAST PREFIX x PREFIX xy|a CLIENT CACHING YES|a SET foo2 me|?
        a CLIENT TRACKING OFF|w SET foo1 x|?""",
    "optin": """
        a HELLO 3|a CLIENT TRACKING ON OPTIN|a CLIENT CACHING NO|a GET k1|w SET k1 w|?
        a CLIENT CACHING YES|a CLIENT TRACKINGINFO|a GET k1|a GET k2|w SET k2 w|w SET k1 w|?
        a CLIENT CACHING YES|a MULTI|a GET k1|a EXEC|w SET k1 w|?|a CLIENT CACHING YES|a MGET k1 k2 k3 k4
        w DEL k1|w DEL k2|?|a CLIENT TRACKING ON OPTOUT""",
    "optout": """
        a HELLO 3|a CLIENT TRACKING ON OPTOUT|a GET k1|a CLIENT CACHING YES|a CLIENT CACHING NO|a GET k2
        a CLIENT TRACKINGINFO|w SET k2 w|w SET k1 w|?|a CLIENT CACHING x|a CLIENT TRACKING ON OPTIN""",
    "redirect to a client of RESP3": """
        a HELLO 3|t HELLO 3|a CLIENT TRACKING ON REDIRECT @t|a CLIENT GETREDIR|a GET k1|w SET k1 w|?
        a CLIENT TRACKING ON REDIRECT 999999|t close|a GET k1|w SET k1 w|?|a CLIENT TRACKINGINFO""",
    "redirect to a subscriber": """
        s SUBSCRIBE __redis__:invalidate|b CLIENT TRACKING ON REDIRECT @s|b GET k1|b MGET k1 k2 k3
        w SET k1 w|w SET k2 q|?|a HELLO 3|a CLIENT TRACKING ON REDIRECT @s|a GET k1|w SET k1 w|?
        b CLIENT TRACKING OFF|b GET k1|w SET k1 w|?""",
    "mistakes": """
        b CLIENT TRACKING FOO|b CLIENT TRACKING ON FOO|b CLIENT TRACKING ON REDIRECT
        b CLIENT TRACKING ON PREFIX a|b CLIENT TRACKING ON OPTIN OPTOUT|b CLIENT TRACKING ON BCAST OPTOUT
        b CLIENT TRACKING ON REDIRECT x|b CLIENT TRACKING ON REDIRECT 999999
        b CLIENT TRACKING ON REDIRECT @a REDIRECT @a|b CLIENT CACHING x|b CLIENT TRACKING ON|b GET k1
        w SET k1 1|?|b CLIENT TRACKINGINFO|b CLIENT CACHING x""",
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as nodes:
        yield nodes


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def proxy(nodes: list[RedisNode], request: pytest.FixtureRequest) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml(shards_of(nodes), top=f"workers = {request.param}")) as proxy:
        yield proxy


def emptied(servers: Sequence[RedisNode]) -> None:
    for server in servers:
        with server.raw() as raw:
            raw.ask("FLUSHALL")


@pytest.mark.parametrize("name", PROGRAMS)
def test_tracking_is_as_redis_does_it(
    proxy: ProxyProcess, nodes: list[RedisNode], redis: RedisNode, name: str
) -> None:
    emptied([*nodes, redis])
    program = [
        step.strip() for line in PROGRAMS[name].splitlines() for step in line.split("|") if step.strip()
    ]
    expected, found = run(redis.port, program), run(proxy.port, program)
    for one, other in zip(expected, found, strict=True):
        assert other == one
    assert "handler_failed" not in proxy.log_text()


@pytest.fixture
def own(nodes: list[RedisNode]) -> Iterator[ProxyProcess]:
    """A proxy for a test that counts connections."""
    with ProxyProcess(toml(shards_of(nodes))) as proxy:
        yield proxy


@pytest.mark.parametrize("mode", [(), ("BCAST",)])
def test_a_lost_connection_is_told_and_made_again(
    own: ProxyProcess, nodes: list[RedisNode], mode: tuple[str, ...]
) -> None:
    emptied(nodes)
    with own.raw() as reader, own.raw() as writer:
        reader.ask("HELLO", 3)
        assert reader.ask("CLIENT", "TRACKING", "ON", *mode) == b"+OK\r\n"
        keys = [f"key{number}" for number in range(20)]
        for key in keys:
            reader.ask("GET", key)
        for node in nodes:
            with node.raw() as direct:
                direct.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert reader.unasked(0.3) == [NULL] * 3
        for key in keys:
            until(lambda key=key: reader.ask("GET", key) == b"_\r\n", "its node is there again")
        writer.ask("MSET", *(word for key in keys for word in (key, 1)))
        told = b"".join(reader.unasked(0.3))
        assert all(key.encode() + b"\r\n" in told for key in keys)


def test_a_change_of_the_ring_is_told(nodes: list[RedisNode]) -> None:
    shards = shards_of(nodes)
    with ProxyProcess(toml({"a": shards["a"], "b": shards["b"]})) as proxy, proxy.raw() as reader:
        reader.ask("HELLO", 3)
        reader.ask("CLIENT", "TRACKING", "ON")
        reader.ask("MGET", *(f"key{number}" for number in range(20)))
        proxy.config_path.write_text(toml(shards))
        with proxy.raw() as admin:
            assert b"ERR" not in admin.ask("PROXY", "RELOAD")
        assert NULL in reader.unasked(0.3)
        reader.ask("MGET", *(f"key{number}" for number in range(20)))
        with proxy.raw() as writer:
            for number in range(20):
                writer.ask("SET", f"key{number}", 1)
        assert b"".join(reader.unasked(0.3)).count(b"invalidate") == 20


def test_who_waits_for_data_is_told_meanwhile(own: ProxyProcess) -> None:
    """It may wait for ever, and its cache would be old for as long."""
    with own.raw() as reader, own.raw() as writer:
        reader.ask("HELLO", 3)
        reader.ask("CLIENT", "TRACKING", "ON")
        reader.ask("GET", "k")
        reader.send(pack("BLPOP", "list", 0))
        until(lambda: b"cmd=blpop" in writer.ask("CLIENT", "LIST"), "it waits")
        writer.ask("SET", "k", 1)
        assert reader.frame() == b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"
        writer.ask("RPUSH", "list", "x")
        assert pack("list", "x") in reader.frames(1) + reader.unasked(0.05)


def test_a_late_unblock_finds_nobody(own: ProxyProcess, nodes: list[RedisNode]) -> None:
    """A client that tracks keeps its connection; what it waits for next is on another one."""

    def waiting() -> list[str]:
        found = []
        for node in nodes:
            with node.raw() as direct:
                lines = direct.value("CLIENT", "LIST").splitlines()
                found += [line.split()[0] for line in lines if "cmd=blpop" in line and "flags=b" in line]
        return found

    with own.raw() as raw, own.raw() as other:
        raw.ask("HELLO", 3)
        raw.ask("CLIENT", "TRACKING", "ON")
        number = raw.value("CLIENT", "ID")
        seen = []
        for _ in range(2):
            raw.send(pack("BLPOP", "list", 0))
            seen += until(waiting, "it waits")
            assert other.ask("CLIENT", "UNBLOCK", number) == b":1\r\n"
            while raw.frame() != b"_\r\n":
                pass
        assert len(set(seen)) == 2, seen


def test_caching_goes_with_its_transaction(nodes: list[RedisNode]) -> None:
    """Also when what waited before them, for a node that does not say hello yet, is given up."""
    calm = "consecutive = 1000, failures = 1000, minimum = 1000, interval = '1h'"
    pool = f"timeout = '2s'\nconnect_timeout = '1h'\nhealth = {{ {calm} }}"
    with ProxyProcess(toml(shards_of(nodes[:1]), pool=pool)) as proxy, proxy.raw() as raw:
        emptied(nodes[:1])
        raw.ask("HELLO", 3)
        assert raw.ask("CLIENT", "TRACKING", "ON", "OPTIN") == b"+OK\r\n"
        nodes[0].pause()
        try:
            assert raw.ask("GET", "early").startswith(b"-TIMEOUT")
            raw.send(b"CLIENT CACHING YES\r\nMULTI\r\nGET k\r\nEXEC\r\n")
            assert raw.frames(3) == [b"+OK\r\n", b"+OK\r\n", b"+QUEUED\r\n"]
        finally:
            nodes[0].resume()
        assert raw.frame() == b"*1\r\n_\r\n"
        with nodes[0].raw() as direct:
            direct.ask("SET", "k", 1)
        assert raw.frame() == b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"


def test_what_tracking_leaves_behind_is_closed(own: ProxyProcess, nodes: list[RedisNode]) -> None:
    def connections() -> int:
        found = 0
        for node in nodes:
            with node.raw() as direct:
                found += direct.value("CLIENT", "LIST", "TYPE", "normal").count(" flags=t")
        return found

    with own.raw() as one, own.raw() as other:
        for raw in (one, other):
            raw.ask("HELLO", 3)
            raw.ask("CLIENT", "TRACKING", "ON")
            for number in range(20):
                raw.ask("GET", f"key{number}")
        assert connections() == 6
        one.ask("CLIENT", "TRACKING", "OFF")
    until(lambda: connections() == 0, "they are closed")


def test_a_pipeline_gets_its_values_before_they_change(own: ProxyProcess) -> None:
    """An invalidation that overtook the value it is about would leave a stale one in the client's cache."""
    with own.raw() as reader, own.raw() as writer:
        reader.ask("HELLO", 3)
        reader.ask("CLIENT", "TRACKING", "ON")
        for turn in range(50):
            keys = [f"key{number}" for number in range(20)]
            writer.send(b"".join(b"SET %s %d\r\n" % (key.encode(), turn) for key in keys) * 3)
            reader.send(b"".join(b"GET %s\r\n" % key.encode() for key in keys))
            writer.frames(60)
            cache: dict[str, bytes] = {}
            waiting = list(keys)
            # the nodes have written what they tell before these replies
            reader.send(b"".join(b"STRLEN %s\r\n" % key.encode() for key in keys))
            frames = list(reader_frames(reader, 2 * len(keys)))
            # what the proxy read after these commands stands behind all of their replies
            reader.send(b"ECHO end\r\n")
            frames += reader_frames(reader, 1)
            for frame in frames:
                if frame.startswith(b">"):
                    cache.pop(frame.split(b"\r\n")[5].decode() if b"_" not in frame else "", None)
                elif waiting:
                    cache[waiting.pop(0)] = frame.split(b"\r\n")[1]
            assert all(value == b"%d" % turn for value in cache.values()), (turn, frames)


def reader_frames(raw: Raw, replies: int) -> Iterator[bytes]:
    while replies:
        frame = raw.frame()
        replies -= not frame.startswith(b">")
        yield frame

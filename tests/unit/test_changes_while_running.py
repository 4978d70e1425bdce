"""Changes while it runs, the parts without sockets: reload, drained shards, the state file, takeover."""

import asyncio
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from fakes import CONFIG, FakeClient, FakeServer, ask

from shardproxy.config import Credentials, Limits, Secret, ShardConfig, load
from shardproxy.config.tables import differences
from shardproxy.core import errors
from shardproxy.core.acl import Users
from shardproxy.core.topology import RETURNING, Topology
from shardproxy.handlers.base import Outcome
from shardproxy.handlers.operate import is_local
from shardproxy.proxy import state
from shardproxy.proxy.reload import Reloader, change, moved, needs_tidying
from shardproxy.proxy.resolve import choose, numeric, split
from shardproxy.proxy.supervisor import STARTING_STEP, Supervisor
from shardproxy.proxy.takeover import deal, door_name

replace = msgspec.structs.replace
POOL = CONFIG.pool["main"]


def with_shards(**shards: Any) -> Any:
    return replace(CONFIG, pool={"main": replace(POOL, shards=shards)})


def shard(port: int, **options: Any) -> ShardConfig:
    return ShardConfig(primary=f"redis://127.0.0.1:{port}", **options)


# --- differences ---


def test_differences_name_each_option_and_no_secret() -> None:
    new = with_shards(a=shard(7001, weight=2), b=shard(7012), d=shard(7004, password=Secret("hunter2")))
    found = [str(each) for each in differences(CONFIG, new)]
    assert found == [
        "pool.main.shards.a.weight: 1 → 2",
        'pool.main.shards.b.primary: "redis://127.0.0.1:7002" → "redis://127.0.0.1:7012"',
        "pool.main.shards.c removed",
        "pool.main.shards.d added",
    ]
    other = with_shards(**POOL.shards | {"a": shard(7001, password=Secret("hunter2"))})
    assert [str(each) for each in differences(CONFIG, other)] == [
        "pool.main.shards.a.password: nothing → a password"
    ]
    assert list(differences(CONFIG, CONFIG)) == []


def test_what_needs_a_restart_is_named_and_not_taken() -> None:
    new = replace(
        with_shards(**POOL.shards | {"d": shard(7004)}),
        workers=4,
        listen=("127.0.0.1:1",),
        limits=Limits(maxclients=7),
        state="/run/state",
    )
    found = change(CONFIG, new)
    assert found.changed == ['state: nothing → "/run/state"', "pool.main.shards.d added"]
    assert found.restart == [
        'listen: ["127.0.0.1:6380"] → ["127.0.0.1:1"]',
        "workers: 1 → 4",
        "limits.maxclients: 10000 → 7",
    ]
    assert found.config == replace(CONFIG, pool=new.pool, state="/run/state")


def test_a_durable_pool_whose_ring_changes_is_warned_of() -> None:
    old = Topology.from_config(CONFIG)
    assert moved(old, old.with_config(with_shards(**POOL.shards | {"a": shard(7777)}))) == []
    assert len(moved(old, old.with_config(with_shards(**POOL.shards | {"d": shard(7004)})))) == 1


def test_logins_are_compared_and_not_shown() -> None:
    one = Credentials({("main", "a"): ("", "hunter2")})
    assert one == Credentials({("main", "a"): ("", "hunter2")})
    assert one != Credentials({("main", "a"): ("", "hunter3")})
    assert "hunter" not in repr(one)


# --- drained shards ---


def test_a_drained_shard_gives_its_keys_away_and_nothing_else_moves() -> None:
    before = Topology.from_config(CONFIG, 7)
    after = before.with_draining({"main": ["b"]})
    pool = after.pools[0]
    assert after.generation == 8
    assert [each.name for each in pool.shards] == ["a", "b", "c"]
    assert pool.ring is before.pools[0].ring
    assert [pool.mode(each) for each in pool.shards] == ["serve", "move", "serve"]
    assert [pool.elsewhere(each) for each in pool.shards] == [False, True, False]
    assert after.draining == {"main": ("b",)}
    for number in range(500):
        key = b"key%d" % number
        home, now = before.pools[0].home(key), pool.home(key)
        assert now.name != "b"
        # a drained shard's keys go where its stand-in would have held them; the others stay
        expected = before.pools[0].stand_in(key) if home.name == "b" else home
        assert expected is not None
        assert now.name == expected.name
        stand_in = pool.stand_in(key)
        assert stand_in is not None
        assert stand_in.name not in ("b", now.name)
    assert after.with_draining({"main": ["b"]}) is after
    assert after.with_draining({}).pools == before.pools


def test_the_last_shard_is_not_drained() -> None:
    made = Topology.from_config(CONFIG).with_draining({"main": ["a", "b"]})
    with pytest.raises(ValueError, match="no shard would be left"):
        made.with_draining({"main": ["a", "b", "c"]})


def test_a_reload_keeps_what_is_drained() -> None:
    made = Topology.from_config(CONFIG).with_draining({"main": ["a"]}).with_node_state("127.0.0.1:7002", "up")
    after = made.with_config(with_shards(**POOL.shards | {"d": shard(7004)}))
    assert after.draining == {"main": ("a",)}
    assert after.nodes["127.0.0.1:7002"].state == "up"
    assert made.with_config(CONFIG) is made
    with pytest.raises(ValueError, match="no shard would be left"):
        made.with_config(with_shards(a=POOL.shards["a"]))


CACHE = replace(POOL, kind="cache", on_shard_down="rehash", on_return="invalidate")


def cache(**shards: ShardConfig) -> Any:
    return replace(CONFIG, pool={"main": replace(CACHE, shards=shards)})


def shown(made: Topology, name: str) -> tuple[str, bool, bool, str]:
    pool = made.pools[0]
    it = pool.shard(name)
    return it.node.state, it.draining, it.returning, pool.mode(it)


def test_where_old_values_are_removed_an_undrained_shard_returns_first() -> None:
    made = Topology.from_config(cache(**POOL.shards)).with_node_state("127.0.0.1:7002", "up")
    drained = made.with_draining({"main": ["b"]})
    back = drained.with_draining({})
    assert shown(back, "b") == ("up", True, True, "move")
    assert back.draining == {}
    fenced = back.with_node_state("127.0.0.1:7002", "suspect", RETURNING)
    assert shown(fenced, "b") == ("suspect", True, True, "hold")
    assert not fenced.pools[0].elsewhere(fenced.pools[0].shard("b"))
    assert shown(fenced.with_node_state("127.0.0.1:7002", "up", back=True), "b") == (
        "up",
        False,
        False,
        "serve",
    )
    # drained again before it is back; a reload in between changes nothing of it
    assert shown(back.with_draining({"main": ["b"]}), "b") == ("up", True, False, "move")
    more = back.with_config(cache(**POOL.shards, d=shard(7004)))
    assert shown(more, "b") == ("up", True, True, "move")
    kept = replace(CONFIG, pool={"main": replace(CACHE, on_return="keep")})
    assert shown(back.with_config(kept), "b") == ("up", False, False, "serve")
    with pytest.raises(ValueError, match="no shard would be left"):
        back.with_draining({"main": ["a", "c"]})


@pytest.mark.parametrize("on_shard_down", ["error", "miss"])
def test_a_drained_shard_whatever_the_policy(on_shard_down: str) -> None:
    """Its keys are with stand-ins; when one of those is out, they go nowhere else."""
    pool = replace(CACHE, on_shard_down=on_shard_down)
    made = Topology.from_config(replace(CONFIG, pool={"main": pool}))
    made = made.with_draining({"main": ["b"]}).with_node_state("127.0.0.1:7001", "out")
    pool_ = made.pools[0]
    assert [pool_.elsewhere(each) for each in pool_.shards] == [False, True, False]
    assert {pool_.home(b"key%d" % number).name for number in range(100)} == {"a", "c"}


def test_the_node_that_takes_the_place_of_one_that_is_out() -> None:
    made = Topology.from_config(cache(**POOL.shards))
    moved_b = cache(**POOL.shards | {"b": shard(7009)})
    assert shown(made.with_config(moved_b), "b") == ("unknown", False, False, "serve")
    out = made.with_node_state("127.0.0.1:7002", "out", swept=False)
    assert shown(out.with_config(moved_b), "b") == ("out", False, False, "miss")
    fenced = made.with_node_state("127.0.0.1:7002", "suspect", RETURNING)
    assert shown(fenced.with_config(moved_b), "b") == ("out", False, False, "move")
    drained = made.with_draining({"main": ["b"]})
    assert shown(drained.with_config(moved_b), "b") == ("unknown", True, False, "move")


def test_when_keys_move_between_nodes_that_stay() -> None:
    made = Topology.from_config(cache(**POOL.shards))
    heavy = shard(7001, weight=2)
    assert needs_tidying(made, made.with_config(cache(**POOL.shards | {"a": heavy})))
    assert needs_tidying(made, made.with_config(cache(**POOL.shards, d=shard(7004))))
    assert needs_tidying(made, made.with_config(cache(**POOL.shards | {"a": shard(7002), "b": shard(7001)})))
    assert not needs_tidying(made, made.with_config(cache(**POOL.shards | {"a": shard(7009)})))
    assert not needs_tidying(made, made.with_draining({"main": ["b"]}))
    durable = Topology.from_config(CONFIG)
    assert not needs_tidying(durable, durable.with_config(with_shards(**POOL.shards | {"a": heavy})))


def test_which_changes_are_made_for_all_workers_at_once() -> None:
    """Those that have a key looked for at another node than before, whatever the kind of the pool."""
    made = Topology.from_config(CONFIG)
    for shards in (
        {**POOL.shards, "d": shard(7004)},
        {"a": POOL.shards["a"], "b": POOL.shards["b"]},
        {**POOL.shards, "a": shard(7001, weight=2)},
        {**POOL.shards, "a": shard(7009)},
    ):
        assert made.moves_keys(made.with_config(with_shards(**shards)))
    assert made.moves_keys(drained := made.with_draining({"main": ["a"]}))
    assert drained.moves_keys(drained.with_draining({}))
    for option in ({"hash_tag": ""}, {"virtual_nodes": 100}):
        assert made.moves_keys(made.with_config(replace(CONFIG, pool={"main": replace(POOL, **option)})))
    for option in ({"timeout": 9.0}, {"retries": 0}, {"partial": "nil"}):
        assert not made.moves_keys(made.with_config(replace(CONFIG, pool={"main": replace(POOL, **option)})))
    assert not made.moves_keys(made.again())
    # what goes with the fence of a return is held already
    undrained = Topology.from_config(cache(**POOL.shards)).with_draining({"main": ["a"]})
    assert not undrained.moves_keys(undrained.with_draining({}))


class Owner:
    """Writes down what is asked of it; one whose `adopt` fails."""

    def __init__(self, fails: bool) -> None:
        self.config, self.topology, self.fails = CONFIG, Topology.from_config(CONFIG), fails
        self.handed_over, self.keeper = asyncio.Event(), None
        self.asked: list[str] = []

    def log(self, event: str, **fields: Any) -> None:
        self.asked.append(event)

    async def hold(self) -> None:
        self.asked.append("hold")
        # what becomes known of nodes meanwhile is not lost
        self.topology = self.topology.with_node_state("127.0.0.1:7002", "up")

    def release(self) -> None:
        self.asked.append("release")

    async def adopt(self, config: Any, topology: Topology, *beside: Any) -> list[str]:
        if self.fails:
            raise OSError
        assert topology.generation > self.topology.generation
        self.topology = topology
        return []


async def test_keys_move_behind_a_hold() -> None:
    owner = Owner(fails=False)
    reloader = Reloader(owner, Credentials({}), Users())  # type: ignore[arg-type]
    answer = (await reloader.operate("drain", "a", True)).answer
    assert answer["generation"] == owner.topology.generation
    assert owner.asked == ["hold", "shards_drained"]
    assert owner.topology.draining == {"main": ("a",)}
    assert owner.topology.nodes["127.0.0.1:7002"].state == "up"


async def test_a_change_that_fails_holds_nobody_back() -> None:
    owner = Owner(fails=True)
    reloader = Reloader(owner, Credentials({}), Users())  # type: ignore[arg-type]
    assert (await reloader.operate("drain", "a", True)).error == errors.INTERNAL
    assert owner.asked == ["hold", "release", "change_failed"]


async def test_keys_do_not_move_while_a_worker_is_starting() -> None:
    """It was told where they are; one that begins meanwhile is told when they have moved."""
    supervisor = Supervisor(CONFIG, 2)
    running: Any = SimpleNamespace(returncode=None)
    for slot in supervisor.slots:
        slot.process = running
    supervisor.slots[0].ready.set()
    holding = asyncio.create_task(supervisor.hold())
    done, _ = await asyncio.wait([holding], timeout=3 * STARTING_STEP)
    assert not done
    supervisor.slots[1].ready.set()
    await holding
    beginning = asyncio.create_task(supervisor._steady.wait())
    done, _ = await asyncio.wait([beginning], timeout=STARTING_STEP)
    assert not done
    supervisor.release()
    assert await beginning
    for slot in supervisor.slots:
        slot.process = None
    await supervisor.close()


def test_the_same_again_has_the_next_generation() -> None:
    made = Topology.from_config(CONFIG, 3)
    assert made.again().generation == 4
    assert made.again().pools == made.pools


# --- the commands ---


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:5", True),
        ("127.9.9.9:5", True),
        ("[::1]:5", True),
        ("[::ffff:127.0.0.1]:5", True),
        ("/run/proxy.sock:0", True),
        ("10.0.0.1:5", False),
        ("[::ffff:10.0.0.1]:5", False),
        ("[2001:db8::1]:5", False),
        ("?:0", False),
    ],
)
def test_who_is_on_this_machine(address: str, local: bool) -> None:
    assert is_local(address) is local


async def test_changes_are_asked_of_who_owns_the_topology() -> None:
    server, client = FakeServer(outcome=Outcome(answer={"generation": 3})), FakeClient()
    assert b'"generation": 3' in await ask(server, client, "PROXY", "RELOAD")
    await ask(server, client, "PROXY", "DRAIN", "a")
    await ask(server, client, "proxy", "drain", "a", "force")
    await ask(server, client, "PROXY", "UNDRAIN", b"\xff")
    assert server.operated == [
        ("reload",),
        ("drain", "a", False),
        ("drain", "a", True),
        ("undrain", "\ufffd"),
    ]
    assert await ask(server, client, "PROXY", "DRAIN", "a", "now") == b"-ERR syntax error\r\n"
    assert b"wrong number" in await ask(server, client, "PROXY", "RELOAD", "now")


async def test_clients_of_other_machines_change_nothing() -> None:
    server, client = FakeServer(), FakeClient(addr="10.0.0.1:50000")
    for args in (["RELOAD"], ["DRAIN", "a"], ["UNDRAIN", "a"]):
        assert (await ask(server, client, "PROXY", *args)) == f"-{errors.NOT_LOCAL}\r\n".encode()
    assert server.operated == []


async def test_a_refusal_is_an_error_on_one_line() -> None:
    server = FakeServer(outcome=Outcome(errors.not_reloaded(4, ["one\r\nmistake", "another"])))
    found = await ask(server, FakeClient(), "PROXY", "RELOAD")
    assert found.startswith(b"-ERR the configuration is refused, generation 4 goes on: 2 mistakes: one")
    assert found.endswith(b" | another\r\n")
    assert found.count(b"\n") == 1


# --- the state file ---


def test_the_state_comes_back_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    assert state.read(path) is None
    state.keep(path, "é = 1".encode(), {"main": ("a", "b")})
    kept = state.read(path)
    assert kept is not None
    assert (kept.text, kept.drained) == ("é = 1", {"main": ["a", "b"]})
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    before = os.stat(path).st_ino
    state.keep(path, "é = 1".encode(), {"main": ("a", "b")})
    assert os.stat(path).st_ino == before, "written again though nothing changed"
    state.keep(path, b"x = 2", {})
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\xff\xfe", b"[]", b'{"kind": "other", "format": 1}', b'{"kind":"shardproxy state"}',
     b'{"kind":"shardproxy state","format":1,"text":7}'],
)  # fmt: skip
def test_what_is_not_a_state_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    for work in (lambda: state.read(str(path)), lambda: state.keep(str(path), b"x = 1", {})):
        with pytest.raises(state.StateError, match="not a state file"):
            work()
    assert path.read_bytes() == content


def test_a_newer_state_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state"
    newer = b'{"kind":"shardproxy state","format":2,"by":"9.9","text":["another shape"]}'
    path.write_bytes(newer)
    for work in (lambda: state.read(str(path)), lambda: state.keep(str(path), b"x = 1", {})):
        with pytest.raises(state.StateError, match=r"newer shardproxy \(9\.9\)"):
            work()
    assert path.read_bytes() == newer


def test_a_state_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(state.StateError, match="No such file"):
        state.keep(str(tmp_path / "missing" / "state"), b"x = 1", {})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('state = "/run/s"\nworkers = "many"', "/run/s"),
        ('state = "/run/s"  # kept\nworkers = \n[pool.main]\n', "/run/s"),
        ('workers = \n  state = "/run/s"\n', "/run/s"),
        ('[pool.main]\nstate = "/run/s"\nx = ', ""),
        ('state = "relative"', ""),
        ("state = 7\n=", ""),
        ("", ""),
        ("\x00\xff = [[[[", ""),
    ],
)
def test_where_the_state_is_can_be_read_of_a_broken_file(text: str, found: str) -> None:
    assert state.named_in(text.encode()) == found


def test_the_last_good_configuration_is_loaded(tmp_path: Path) -> None:
    good = '[pool.main.shards]\na = "redis://127.0.0.1:7001"\n'
    path, file = tmp_path / "state", tmp_path / "shardproxy.toml"
    text = f'state = "{path}"\n{good}'
    state.keep(str(path), text.encode(), {})
    file.write_text(f'state = "{path}"\nworkers = \n')
    assert state.last_good(str(file)) == load(text.encode())
    assert state.last_good(str(tmp_path / "missing.toml")) is None
    file.write_text("workers = \n")
    assert state.last_good(str(file)) is None


# --- names, sockets ---


def test_which_nodes_need_a_lookup() -> None:
    assert split("cache.example:6379") == ("cache.example", 6379)
    for address in ("10.0.0.1:1", "[::1]:2", "/run/redis.sock"):
        assert split(address) is None
    assert numeric("10.0.0.1", 1) == "10.0.0.1:1"
    assert numeric("::1", 2) == "[::1]:2"


def test_an_address_stays_while_it_is_among_the_answers() -> None:
    assert choose(["b:1", "a:1"], "a:1") == "a:1"
    assert choose(["b:1", "c:1"], "a:1") == choose(["c:1", "b:1"], "a:1") == "b:1"
    assert choose(["b:1"], None) == "b:1"
    assert choose([], "a:1") is None


def test_all_workers_take_the_same_of_several_addresses() -> None:
    """Of the family that the machine has put first."""
    for found in (["10.0.0.2:1", "10.0.0.1:1", "[::1]:1"], ["10.0.0.1:1", "[::1]:1", "10.0.0.2:1"]):
        assert choose(found, None) == "10.0.0.1:1"
    assert choose(["[::2]:1", "10.0.0.1:1", "[::1]:1"], None) == "[::1]:1"


@pytest.mark.parametrize(
    ("sockets", "slots", "dealt"),
    [
        ([[1]], 1, [[1]]),
        ([[1], [2], [3]], 3, [[1], [2], [3]]),
        ([[1], [2], [3]], 1, [[1, 2, 3]]),
        ([[1], [2], [3]], 2, [[1, 3], [2]]),
        ([[1]], 3, [[1], [1], [1]]),
        ([[1], [2]], 3, [[1], [2], [1]]),
        ([[1, 2], [3, 4]], 2, [[1, 2], [3, 4]]),
        ([[9], [9]], 1, [[9]]),  # a unix socket, the same in all slots
        ([[9], [9]], 4, [[9], [9], [9], [9]]),
    ],
)
def test_sockets_are_dealt_to_any_number_of_workers(
    sockets: list[list[int]], slots: int, dealt: list[list[int]]
) -> None:
    assert deal(sockets, slots) == dealt


def test_a_takeover_is_found_by_the_first_address() -> None:
    assert door_name(["127.0.0.1:6380", "unix:///x"]) == b"\0shardproxy 127.0.0.1:6380"
    assert door_name(["unix:///run/p.sock"]) == b"\0shardproxy unix:///run/p.sock"
    assert door_name(["127.0.0.1:0"]) is None
    long = door_name(["unix:///" + "x" * 100])
    assert long is not None
    assert len(long) < 100

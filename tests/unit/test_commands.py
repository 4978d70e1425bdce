"""The command table: lookup, keys, decisions, the shape of COMMAND, and what is learnt from nodes."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shardproxy.core import command_learning, command_policy
from shardproxy.core.command_rows import KeySpec, Row
from shardproxy.core.commands import CommandTable, builtin, learn

TABLE = builtin()


def row(name: str) -> Row:
    found = TABLE.row(*name.encode().split(b"|"))
    assert found is not None, name
    return found


# --- lookup ---


@pytest.mark.parametrize("record", TABLE.records, ids=lambda record: record.name)
def test_every_row_is_found_in_any_case(record: Row) -> None:
    for name in (record.name, record.name.upper(), record.name.title()):
        assert TABLE.row(*name.encode().split(b"|")) is record


@pytest.mark.parametrize(
    "name",
    [b"", b"g", b"ge", b"gett", b"get\0", b"\0", b"config|get", b"get ", b"x" * 47, b"x" * 48, b"x" * 5000],
)
def test_unknown_names(name: bytes) -> None:
    assert TABLE.row(name) is None


@pytest.mark.parametrize(
    "sub", [b"", b"gett", b"get\0", b"|get", b"config|get", b"usage", b"x" * 48, b"x" * 5000]
)
def test_unknown_subcommands(sub: bytes) -> None:
    assert TABLE.row(b"config", sub) is None


def test_folding_is_of_letters_only() -> None:
    assert TABLE.row(b"SORT_RO") is not None
    assert TABLE.row(b"SORT\x7fRO") is None  # "_" is 0x5F: 0x20 away from DEL
    assert TABLE.row(b"client", b"no-touch") is not None
    assert TABLE.row(b"client", b"no\rtouch") is None


def test_a_container_alone_is_its_own_row() -> None:
    assert row("config").subcommands
    assert TABLE.row(b"get", b"whatever") is row("get")
    assert row("command").arity == -1


def test_rows_come_whole() -> None:
    assert [top.name for top in TABLE.rows()] == [name for name in TABLE.names if "|" not in name]
    assert [flat for top in TABLE.rows() for flat in top.flat()] == list(TABLE.records)
    assert len(TABLE) == len(TABLE.records)


@pytest.mark.parametrize(
    "rows",
    [
        [Row(name="a", arity=1), Row(name="a", arity=2)],
        [Row(name="A", arity=1)],
        [Row(name="x" * 48, arity=1)],
        [Row(name="", arity=1)],
        [Row(name="a", arity=2, key_specs=(KeySpec(index=1, step=0),))],
        [Row(name="a", arity=2, key_specs=(KeySpec(begin="keyword", index=1, keyword="k" * 25),))],
    ],
)
def test_an_impossible_table_is_refused(rows: list[Row]) -> None:
    with pytest.raises(ValueError, match=r"twice|47|impossible|keyword"):
        CommandTable(rows)


def test_an_empty_table_knows_nothing() -> None:
    assert CommandTable([]).row(b"get") is None


# --- keys ---

KEYS = [
    ("GET k", [1]),
    ("SET k v GET", [1]),
    ("MSET a 1 b 2", [1, 3]),
    ("DEL a b c", [1, 2, 3]),
    ("BITOP AND d a b", [2, 3, 4]),
    ("OBJECT ENCODING k", [2]),
    ("XGROUP CREATE k g 0", [2]),
    ("MEMORY USAGE k SAMPLES 5", [2]),
    ("BLPOP a b 0", [1, 2]),
    ("LCS a b LEN", [1, 2]),
    ("PFMERGE d", [1]),
    ("PFMERGE d a", [1, 2]),
    ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", [1, 3, 4]),
    ("SINTERCARD 2 a b LIMIT 1", [2, 3]),
    ("EVAL s 2 a b c", [3, 4]),
    ("EVAL s 0 a", []),
    ("FCALL f 1 a", [3]),
    ("SORT k", [1]),
    ("SORT k BY nosort GET # LIMIT 0 1 STORE d", [1, 10]),
    ("SORT k BY store STORE d", [1, 5]),
    ("SORT k STORE a STORE b", [1, 5]),
    ("SORT_RO k BY nosort", [1]),
    ("XREAD STREAMS a b 0 0", [2, 3]),
    ("XREADGROUP COUNT 1 GROUP streams streams STREAMS a >", [7]),
    ("GEORADIUS k 1 2 3 m STORE a", [1, 7]),
    ("GEORADIUS k 1 2 3 m STORE a STOREDIST b", [1, 7, 9]),
    ("GEORADIUS k 1 2 3 m STORE storedist", [1, 7]),
    ("GEORADIUSBYMEMBER k m 3 m COUNT 1 STOREDIST a", [1, 8]),
    ("GEOSEARCHSTORE d k FROMMEMBER m BYRADIUS 1 m", [1, 2]),
    ("MIGRATE h 1 k 0 1 COPY", [3]),
    ("MSETNX a 1 b 2", [1, 3]),
]


@pytest.mark.parametrize(("text", "positions"), KEYS, ids=[text for text, _ in KEYS])
def test_keys(text: str, positions: list[int]) -> None:
    assert TABLE.keys_of(text.encode().split()) == positions
    assert TABLE.keys_of(text.lower().encode().split()) == positions
    assert TABLE.check(text.encode().split()) == len(positions)


def test_keys_of_migrate_with_an_empty_key() -> None:
    assert TABLE.keys_of([b"MIGRATE", b"h", b"1", b"", b"0", b"1", b"AUTH", b"keys", b"KEYS", b"a"]) == [9]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("MSET a 1 b", -1),
        ("MSETNX a 1 b", -1),
        ("ZUNION 0 a", -1),
        ("ZUNION 01 a", -1),
        ("ZUNION 3 a b", -1),
        ("ZUNION 99999999999999999999999 a", -1),
        ("ZUNION -1 a", -1),
        ("ZUNIONSTORE d x a", -1),
        ("EVAL s x a", -1),
        ("EVAL s 2 a", -1),
        ("XREAD COUNT 1 STREAMS", -1),
        ("XREAD STREAMS a b 0", -1),
        ("XREAD SPEED 1 STREAMS a 0", 1),  # an option of a newer Redis, perhaps
        ("XREADGROUP GROUP g c BLOCK 0 CLAIM 100 STREAMS a >", -3),
        ("GEORADIUS k 1 2 3 m STORE", -1),
        ("SORT k BY w_*", -2),
        ("SORT k GET # GET o_*->f STORE d", -2),
        ("SORT_RO k GET *", -2),
        ("XREAD BLOCK 0 STREAMS a 0", -3),
        ("XREADGROUP GROUP g c BLOCK 5 STREAMS a >", -3),
    ],
)
def test_verdicts_of_the_engine(text: str, verdict: int) -> None:
    args = text.encode().split()
    assert TABLE.check(args) == verdict
    if verdict < -1:
        assert TABLE.keys_of(args)  # COMMAND GETKEYS tells them all the same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid command specified"),
        ("NOSUCH a", "Invalid command specified"),
        ("OBJECT NOSUCH a", "Invalid command specified"),
        ("PING a", "The command has no key arguments"),
        ("SPUBLISH a b", "The command has no key arguments"),
        ("GET a b", "Invalid number of arguments specified for command"),
        ("ZUNION 0 a", "Invalid arguments specified for command"),
    ],
)
def test_errors_are_those_of_getkeys(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        TABLE.keys_of(text.encode().split())


def test_key_flags_that_depend_on_the_arguments() -> None:
    assert TABLE.keys_and_flags_of(b"SET k v".split()) == [(1, ("OW", "update"))]
    assert TABLE.keys_and_flags_of(b"SET k get".split()) == [(1, ("OW", "update"))]
    assert TABLE.keys_and_flags_of(b"SET k v get".split()) == [(1, ("RW", "access", "update"))]
    assert TABLE.keys_and_flags_of(b"BITFIELD k GET u8 0".split()) == [(1, ("RO", "access"))]
    assert TABLE.keys_and_flags_of(b"BITFIELD k SET u8 0 1".split()) == [(1, ("RW", "access", "update"))]
    assert TABLE.keys_and_flags_of(b"SORT k STORE d".split()) == [
        (1, ("RO", "access")),
        (3, ("OW", "update")),
    ]


# --- decisions ---


def names(**wanted: Any) -> set[str]:
    return {
        r.name for r in TABLE.records if all(getattr(r, field) == value for field, value in wanted.items())
    }


def test_what_is_split() -> None:
    assert {r.name: r.merge for r in TABLE.records if r.kind == "fanout"} == {
        **dict.fromkeys(("del", "unlink", "exists", "touch"), "sum"),
        "mget": "array",
        "mset": "ok",
    }


def test_no_two_flags_share_a_bit() -> None:
    text = (Path(command_policy.__file__).parent / "commands.pxd").read_text()
    bits = [int(bit) for bit in re.findall(r"^    FLAG_\w+ = (\d+)", text, re.MULTILINE)]
    assert len(bits) > 10
    assert len(set(bits)) == len(bits)
    assert all(bit & (bit - 1) == 0 for bit in bits)


def test_barriers_and_transactions() -> None:
    assert {"hello", "select", "reset"} <= names(barrier=True)
    assert names(holds=True) <= names(barrier=True)  # else what it asks may be before what was sent before it
    assert names(kind="multi") == {"multi", "exec", "discard", "watch", "unwatch"}
    assert {"ping", "echo", "time", "unwatch"} <= names(keyless=True)
    assert names(in_multi=True) >= names(keyless=True) | names(kind="forward") | names(kind="fanout")


def test_every_decision_names_commands_that_exist() -> None:
    for text, _ in command_policy.DECISIONS:
        for name in text.split():
            assert name in TABLE.names


@pytest.mark.parametrize("record", TABLE.records, ids=lambda record: record.name)
def test_every_row_is_sane(record: Row) -> None:
    assert record.arity != 0
    assert record.summary
    assert len(record.summary) <= 90
    assert record.group
    assert record.since
    assert (record.merge != "none") == (record.kind == "fanout")
    if record.kind == "refused":
        assert record.why  # it ends the sentence "-ERR 'X' is not supported yet: ", or is one
        assert not record.why.endswith(".")
        assert record.why[0].islower() or record.why == "This instance has cluster support disabled"
    if record.kind in ("forward", "fanout") and not record.channel:
        assert record.has_keys
        assert not {"admin", "pubsub", "no_multi"} & set(record.flags)
    if record.kind == "fanout":
        first, last, _ = record.key_range
        assert (first, last) == (1, -1)
        assert not record.movable
    if not record.movable and record.has_keys and record.walk == "":
        # The engine reads such keys from first, last and step without asking for key specs
        first, last, step = record.key_range
        assert first >= 1
        size = max(abs(record.arity), 9) if record.arity < 0 else record.arity
        size += (size - first) % step
        args = [*record.name.encode().split(b"|"), *[b"x"] * size][:size]
        assert TABLE.keys_of(args) == list(range(first, (last if last > 0 else size + last) + 1, step))


def test_an_undecided_command_cannot_slip_through() -> None:
    for flags, specs in [("", ""), ("admin", "1 RW")]:
        with pytest.raises(ValueError, match="must be said"):
            command_policy.decide(["new", 2, flags, "", specs, "", "generic", "", ""], {})


# --- COMMAND ---


def test_the_shape_of_command() -> None:
    assert row("get").info() == [
        *("get", 2, ["readonly", "fast"], 1, 1, 1, ["@read", "@string", "@fast"], []),
        [
            [
                *("flags", ["RO", "access"]),
                *("begin_search", ["type", "index", "spec", ["index", 1]]),
                *("find_keys", ["type", "range", "spec", ["lastkey", 0, "keystep", 1, "limit", 0]]),
            ]
        ],
        [],
    ]
    assert [sub[0] for sub in row("object").info()[9]][:2] == ["object|encoding", "object|freq"]


def test_docs() -> None:
    assert row("get").docs() == {"summary": "Reads a string", "since": "1.0.0", "group": "string"}
    assert "object|freq" in row("object").docs()["subcommands"]


@pytest.mark.parametrize("text", ["", "x", "1..", "1#2", "k@", "@1", "1..-1/x"])
def test_not_a_key_spec(text: str) -> None:
    with pytest.raises(ValueError, match=r"key spec|unpack"):
        KeySpec.parse(text)


# --- learning ---


def entry(name: str = "new.get", **changes: Any) -> list[Any]:
    """A command as hiredis gives it from Redis 7 in RESP2."""
    fields: dict[str, Any] = {
        "name": name.encode(),
        "arity": 2,
        "flags": [b"readonly", b"fast"],
        "first": 1,
        "last": 1,
        "step": 1,
        "categories": [b"@read"],
        "tips": [],
        "specs": [spec()],
        "subcommands": [],
    }
    return list((fields | changes).values())


def spec(begin: Any = None, find: Any = None, flags: Any = None) -> list[Any]:
    return [
        *(b"flags", flags or [b"RO", b"access"]),
        *(b"begin_search", begin or [b"type", b"index", b"spec", [b"index", 1]]),
        *(b"find_keys", find or [b"type", b"range", b"spec", [b"lastkey", 0, b"keystep", 1, b"limit", 0]]),
    ]


KEYNUM = [b"type", b"keynum", b"spec", [b"keynumidx", 0, b"firstkey", 1, b"keystep", 1]]
UNKNOWN = [b"type", b"unknown", b"spec", []]


def learned(*replies: Any, name: bytes = b"new.get") -> Row:
    found = learn(TABLE, replies).row(*name.split(b"|"))
    assert found is not None
    assert found.learned
    return found


def test_a_new_command_with_key_specs_is_forwarded() -> None:
    new = learned([entry()])
    assert (new.kind, new.in_multi, new.flags, new.categories) == (
        "forward",
        True,
        ("readonly", "fast"),
        ("read",),
    )
    table = learn(TABLE, [[entry()]])
    assert table.keys_of([b"NEW.GET", b"k"]) == [1]
    assert len(table) == len(TABLE) + 1


def test_keynum_specs_are_learnt() -> None:
    table = learn(
        TABLE, [[entry(arity=-3, flags=[b"write", b"movablekeys"], first=0, specs=[spec(find=KEYNUM)])]]
    )
    assert table.keys_of(b"new.get 2 a b c".split()) == [2, 3]
    # Malformed: it is not known that the node would refuse it, so it is not sent to just any
    assert table.check(b"new.get x a".split()) == 0
    assert table.check(b"new.get 9 a".split()) == 0


def test_resp3_sets_and_maps() -> None:
    raw = entry(
        flags={b"readonly"},
        specs=[
            {
                b"flags": {b"RO"},
                b"begin_search": {b"type": b"keyword", b"spec": {b"keyword": b"KEYS", b"startfrom": 1}},
                b"find_keys": {b"type": b"range", b"spec": {b"lastkey": -1, b"keystep": 1, b"limit": 0}},
            }
        ],
        arity=-2,
        first=0,
    )
    assert learned([raw]).kind == "forward"
    assert learn(TABLE, [[raw]]).keys_of(b"new.get a keys b c".split()) == [3, 4]


@pytest.mark.parametrize("size", [6, 7])
def test_redis_6_has_fixed_positions(size: int) -> None:
    assert learned([entry()[:size]]).kind == "forward"
    table = learn(TABLE, [[entry(arity=-3, first=1, last=-1, step=2)[:size]]])
    assert table.keys_of(b"new.get a 1 b 2".split()) == [1, 3]
    assert learn(TABLE, [[entry(arity=4, first=1, last=3)[:size]]]).keys_of(b"new.get a b c".split()) == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (entry(specs=[], first=0), "do not say where its keys are"),
        (entry(first=0)[:7], "do not say where its keys are"),
        (entry(flags=[b"readonly", b"movablekeys"])[:7], "do not say where its keys are"),
        (entry(flags=[b"admin"]), "flag it admin"),
        (entry(flags=[b"noscript", b"no_multi"]), "flag it no_multi, noscript"),
        (entry(flags=[b"pubsub"]), "flag it pubsub"),
        (entry(flags=[b"write", b"blocking"]), "may wait"),
        (entry(specs=[spec(), spec(UNKNOWN, UNKNOWN)]), "do not name all"),
        (entry(specs=[spec(flags=[b"RO", b"incomplete"])]), "do not name all"),
        (entry(specs=[spec(flags=[b"not_key"])]), "do not say where its keys are"),
        (entry(flags=[b"write", b"movablekeys"]), "module's own code"),
    ],
)
def test_what_is_not_forwarded_says_why(raw: list[Any], why: str) -> None:
    new = learned([raw])
    assert new.kind == "refused"
    assert why in new.why


def test_several_nodes_must_agree() -> None:
    assert learned([entry()], [entry()]).kind == "forward"
    assert learned([entry()], []).why == "not every node has it"
    assert "agree" in learned([entry()], [entry(specs=[spec(find=KEYNUM)], arity=-3)]).why
    both = learned([entry(arity=3)], [entry(arity=-2, flags=[b"write"])])
    assert (both.kind, both.arity) == ("forward", -2)
    assert (both.writes, "readonly" in both.flags) == (True, False)
    assert "admin" in learned([entry()], [entry(flags=[b"admin"])]).why


def test_built_in_rows_are_never_overridden() -> None:
    reply = [
        entry("blpop", arity=5, flags=[]),
        entry("get", specs=[], first=0),
        entry("config", subcommands=[entry("config|get", specs=[spec()])]),
        entry("get|sub"),
    ]
    assert learn(TABLE, [reply]) is TABLE


def test_new_subcommands_of_old_and_new_containers() -> None:
    sub = entry("xinfo|shape", arity=3, specs=[spec([b"type", b"index", b"spec", [b"index", 2]])])
    new = entry(
        "vec", specs=[], first=0, arity=-2, subcommands=[entry("vec|dim"), entry("vec|all", specs=[])]
    )
    table = learn(TABLE, [[entry("xinfo", subcommands=[sub]), new]])
    assert learned([entry("xinfo", subcommands=[sub])], name=b"xinfo|shape").kind == "forward"
    assert table.keys_of(b"XINFO SHAPE k".split()) == [2]
    assert [s.name for s in table.row(b"vec").subcommands] == ["vec|all", "vec|dim"]  # type: ignore[union-attr]
    assert [table.row(b"vec", s).kind for s in (b"dim", b"all")] == ["forward", "refused"]  # type: ignore[union-attr]
    assert learn(table, []).names == TABLE.names  # what was learnt is forgotten with the nodes that said it


def test_learning_again_changes_nothing() -> None:
    table = learn(TABLE, [[entry()]])
    assert learn(table, [[entry()]]) is table
    assert learn(table, [[entry("other")]]).row(b"new.get") is None


@pytest.mark.parametrize(
    "raw",
    [
        *(
            None,
            1,
            b"x",
            [],
            [b"get"],
            entry()[:5],
            entry(name="get|x"),
            entry(name=""),
            entry(name="x" * 99),
        ),
        *(entry(name="a b"), entry(name="\xff"), entry(arity=0), entry(arity=None), entry(arity=1 << 40)),
        *(entry(arity=True), entry(flags=None), entry(flags=[1]), entry(flags=[b"\n"]), entry(specs=None)),
        *(entry(specs=[None]), entry(specs=[[b"flags"]]), entry(specs=[spec()] * 99), entry(subcommands=7)),
        *(entry(step=0)[:7], entry(first=-1)[:7], entry(first=2, last=1)[:7], entry(first=1 << 20)[:7]),
        entry(specs=[spec([b"type", b"index", b"spec", [b"index", 0]])]),
        entry(specs=[spec([b"type", b"index", b"spec", [b"index", -4]])]),
        entry(specs=[spec([b"type", b"keyword", b"spec", [b"keyword", b"k" * 25, b"startfrom", 1]])]),
        entry(specs=[spec([b"type", b"keyword", b"spec", [b"keyword", b"", b"startfrom", 1]])]),
        entry(specs=[spec(find=[b"type", b"range", b"spec", [b"lastkey", 0, b"keystep", 0, b"limit", 0]])]),
        entry(
            specs=[
                spec(find=[b"type", b"keynum", b"spec", [b"keynumidx", -2, b"firstkey", 1, b"keystep", 1]])
            ]
        ),
    ],
)
def test_garbage_is_left_out_with_a_reason(raw: Any) -> None:
    lesson = command_learning.study(TABLE.rows(), [[raw, entry("good")]])
    assert [r.name for r in lesson.rows if r.learned] == ["good"]
    assert len(lesson.faults) == 1
    assert lesson.faults[0].startswith("node 0, command 0: ")


@pytest.mark.parametrize("reply", [None, b"OK", 5, {}, ValueError("ERR")])
def test_a_reply_that_is_no_array_is_ignored(reply: Any) -> None:
    lesson = command_learning.study(TABLE.rows(), [reply, [entry()]])
    assert lesson.faults == ["node 0: COMMAND did not answer with an array"]
    assert learned(reply, [entry()]).kind == "forward"


def test_too_many_commands() -> None:
    flood = [entry(f"x{i}") for i in range(command_learning.MAX_COMMANDS + 50)]
    lesson = command_learning.study(TABLE.rows(), [flood])
    assert sum(r.learned for r in lesson.rows) == command_learning.MAX_COMMANDS
    assert len(lesson.faults) == 1


def test_a_command_never_has_more_keys_than_arguments() -> None:
    greedy = Row(name="x", arity=-2, key_specs=(KeySpec(index=1, last=-1),) * 4, kind="forward", learned=True)
    assert CommandTable([greedy]).check([b"x", b"a", b"b"]) == 0
    honest = msgspec.structs.replace(greedy, key_specs=(KeySpec(index=1, last=-1),))
    assert CommandTable([honest]).check([b"x", b"a", b"b"]) == 2

"""Users as a live Redis 7.0 has them: rules, patterns and verdicts, many at random, the same ones always.

Redis's ACL DRYRUN says what a user may run; so thousands of (rules, command) pairs cost a pipeline each. What
goes through the proxy is in tests/integration/test_users.py.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import hiredis
import pytest
from servers import Raw, RedisNode, pack

from shardproxy.core import acl, acl_rules, glob
from shardproxy.core.command_rows import Row
from shardproxy.core.commands import builtin
from shardproxy.core.permit import Permit

TABLE = builtin()
ROWS = [row for row in TABLE.records if not row.subcommands and row.name != "quit"]
OURS = {row.name for row in TABLE.records if row.group in ("proxy", "session")} | {
    "client|no-touch",
    "client|setinfo",
    "waitaof",
}


class Oracle:
    def __init__(self, raw: Raw) -> None:
        self.raw = raw

    def run(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Their replies; an error is a hiredis.ReplyError, text is bytes."""
        found: list[Any] = []
        reader = hiredis.Reader()
        for at in range(0, len(commands), 200):
            batch = commands[at : at + 200]
            self.raw.send(b"".join(pack(*command) for command in batch))
            for frame in self.raw.frames(len(batch)):
                reader.feed(frame)
                found.append(reader.gets())
        return found

    def one(self, *command: Any) -> Any:
        return self.run([command])[0]


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with RedisNode() as node, node.raw() as raw:
        yield Oracle(raw)


# --- patterns ---


def test_patterns_match_as_in_redis(oracle: Oracle) -> None:
    rng = random.Random(3)
    letters = b"aabb**??[[]]^-\\\\c\x80\xff"
    tried = hits = 0
    for _ in range(400):
        pattern = bytes(rng.choice(letters) for _ in range(rng.randint(0, 9)))
        texts = {
            bytes(rng.choice(b"aabbc-]\\^*[\x80\xff") for _ in range(rng.randint(0, 6))) for _ in range(8)
        }
        # what the pattern itself looks like is more often matched
        texts |= {bytes(c for c in pattern if rng.random() < 0.8) for _ in range(4)}
        texts |= {pattern.replace(b"*", b"ab").replace(b"?", b"c").replace(b"\\", b"")}
        assert oracle.one("ACL", "SETUSER", "u", "reset", "+get", b"%R~" + pattern) == b"OK"
        for text, reply in zip(
            texts, oracle.run([("ACL", "DRYRUN", "u", "get", text) for text in texts]), strict=True
        ):
            assert glob.matches(pattern, text) == (reply == b"OK"), (pattern, text)
            tried, hits = tried + 1, hits + (reply == b"OK")
    assert hits > 200 and tried - hits > 200


# --- rules ---

COMMANDS = [
    "get",
    "set",
    "del",
    "config",
    "config|get",
    "config|set",
    "client",
    "client|kill",
    "select",
    "eval",
    "sort",
    "acl|whoami",
    "publish",
]
WORDS = [
    *("on", "off", "nopass", "resetpass"),
    *("allkeys", "resetkeys", "allchannels", "resetchannels", "clearselectors"),
    *("allcommands", "nocommands", "~*", "&*", "+@all"),
    *("-@all", "ON", "AllKeys", "RESETCHANNELS", "sanitize-payload"),
    *("~a*", "~b", "%R~a*", "%W~b", "%RW~c", "%wr~d?", "%~x"),
    *("%X~y", "%R~*", "~", "&ch*", "&p:[ab]", "&", "reset"),
    *(f"+{name}" for name in COMMANDS),
    *(f"-{name}" for name in COMMANDS),
    *(f"{sign}@{name}" for sign in "+-" for name in acl_rules.CATEGORIES),
    *("+select|0", "+get|x", "+get|", "-select|0", "+config|nope", "+config|get|x"),
    *("+nope", "-nope", "+@nope", "+", "-", "what"),
    *("+GET", "-Config|Get", "+@READ", "(~s* +get)"),
    *("(%R~r* +@read -sort)", "(+@all ~* &* )", "(nope)", "(on)", "()"),
    *(">secret", ">other", "<secret", "<never", "#" + "ab" * 32, "#short", "!" + "ab" * 32, "!" + "cd" * 32),
]  # fmt: skip


def some_words(rng: random.Random) -> list[str]:
    return [rng.choice(WORDS) for _ in range(rng.randint(1, 9))]


def test_the_same_words_are_wrong(oracle: Oracle) -> None:
    for word in WORDS:
        for before in ([], ["~*", "&*"], [">secret", "#" + "ab" * 32, "#" + "cd" * 32]):
            reply = oracle.one("ACL", "SETUSER", "u", "reset", *before, word)
            _, wrong = acl_rules.parse("u", [*before, word])
            assert bool(wrong) == isinstance(reply, hiredis.ReplyError), (before, word, reply, wrong)
            if wrong:
                with pytest.raises(acl_rules.Refused) as refused:
                    acl_rules.modify(acl.User("u"), [*before, word])
                assert str(reply).endswith(f"': {refused.value.redis}"), (word, reply)


def test_more_rules_for_a_user_mean_the_same(oracle: Oracle) -> None:
    """SETUSER after SETUSER, in words that may be wrong: all or none is applied, as in Redis."""
    rng, refused = random.Random(8), 0
    for _ in range(40):
        user = acl.User("u")
        oracle.one("ACL", "DELUSER", "u")
        for _ in range(12):
            words = some_words(rng)[:4]
            reply = oracle.one("ACL", "SETUSER", "u", *words)
            try:
                user = acl_rules.modify(user, words)
            except acl_rules.Refused as error:
                refused += 1
                assert str(reply).endswith(error.redis), (words, reply)
                assert isinstance(reply, hiredis.ReplyError), words
            else:
                assert reply == b"OK", (words, reply)
        oracle.one("ACL", "SETUSER", "u", "sanitize-payload")  # which we keep nothing of
        assert oracle.one("ACL", "SETUSER", "v", "reset", *acl_rules.words_of(user.describe())[2:]) == b"OK"
        lines = oracle.one("ACL", "LIST")
        first, second = (
            [line for line in lines if line.startswith(b"user %b " % name)] for name in (b"u", b"v")
        )
        assert read_back(first[0][7:]) == read_back(second[0][7:]), user.describe()
    assert refused > 50


def read_back(reply: Any) -> Any:
    """A user of ACL LIST, its words in any order: of commands Redis's own is random."""
    return sorted(reply.split())


def test_what_is_described_means_the_same(oracle: Oracle) -> None:
    """Our text of a user, given to Redis, makes the user that Redis makes of the rules themselves."""
    rng = random.Random(5)
    for _ in range(400):
        words = [
            word for word in some_words(rng) if not acl_rules.parse("u", ["~b", word])[1] or word[0] in "<!"
        ]
        user, wrong = acl_rules.parse("u", words)
        if wrong:
            continue
        assert oracle.one("ACL", "SETUSER", "u", "reset", *words) == b"OK", words
        assert (
            oracle.one("ACL", "SETUSER", "v", "reset", *acl_rules.words_of(user.describe())[2:]) == b"OK"
        ), user.describe()
        (first,) = [line for line in oracle.one("ACL", "LIST") if line.startswith(b"user u ")]
        (second,) = [line for line in oracle.one("ACL", "LIST") if line.startswith(b"user v ")]
        assert read_back(first[7:]) == read_back(second[7:]), (words, user.describe())
        again, none = acl_rules.parse("u", acl_rules.words_of(user.describe())[2:])
        assert (again, none) == (user, [])


# --- verdicts ---

KEYS = [
    b"a",
    b"a1",
    b"b",
    b"c",
    b"s1",
    b"r2",
    b"",
    b"x\0y",
    b"ch1",
    b"p:a",
    b"0",
    b"1",
    b"2",
    b"streams",
    b"get",
]


def random_args(row: Row, rng: random.Random) -> list[bytes]:
    size = abs(row.arity)
    size += rng.choice([0, 0, 1, 2, 3]) if row.arity < 0 else 0
    args = [*row.name.encode().split(b"|")]
    args += [rng.choice(KEYS) for _ in range(size - len(args))]
    for spec in row.key_specs:
        at = spec.index + spec.count
        if spec.find == "keynum" and at < len(args) and rng.random() < 0.8:
            args[at] = b"%d" % rng.randint(1, max(1, len(args) - at - 1))
    if row.walk == "xread":
        keys = rng.sample(KEYS, rng.randint(1, 2))
        group = [b"GROUP", b"g", b"c"] if row.name == "xreadgroup" else []
        args = [row.name.encode(), *group, b"COUNT", b"1", b"STREAMS", *keys, *[b"0"] * len(keys)]
    if row.walk.startswith("geo"):
        args += rng.choice(
            [[], [b"STORE", rng.choice(KEYS)], [b"count", b"1", b"STOREDIST", rng.choice(KEYS)]]
        )
    return args


def expected(reply: Any, row: Row, args: Sequence[bytes]) -> tuple[str, bytes]:
    """DRYRUN's answer as a verdict, and the argument that it names."""
    if reply == b"OK":
        return "allowed", b""
    assert isinstance(reply, bytes), (args, reply)
    if reply == f"This user has no permissions to run the '{row.name}' command".encode():
        return "command", b""
    before, name, kind = reply.split(b"'")
    assert before == b"This user has no permissions to access the "
    return kind.strip().decode(), name


def redis_is_wrong(args: Sequence[bytes]) -> bool:
    """PFMERGE without sources: Redis finds no key in it and lets everybody run it, and it makes that key."""
    return args[0] == b"pfmerge" and len(args) == 2


def loosely_malformed(args: Sequence[bytes]) -> bool:
    """Where Redis's key specs guess at what its command refuses when it runs: we let it say so."""
    try:
        return TABLE.check(args) == -1
    except ValueError:
        return False


def test_verdicts_are_those_of_redis(oracle: Oracle) -> None:
    rng = random.Random(11)
    seen: dict[str, int] = {}
    rows = [row for row in ROWS if row.name not in OURS]
    for _ in range(120):
        words = ["+@all"] * rng.randint(0, 1) + [
            w for w in some_words(rng) if not acl_rules.parse("u", ["~b", w])[1]
        ]
        user, wrong = acl_rules.parse("u", words)
        if wrong:
            continue
        assert oracle.one("ACL", "SETUSER", "u", "reset", *words) == b"OK"
        permit = Permit(user, TABLE, trust_scripts=True)
        picked = [(row, random_args(row, rng)) for row in rng.sample(rows, 80)]
        replies = oracle.run([("ACL", "DRYRUN", "u", *args) for _, args in picked])
        for (row, args), reply in zip(picked, replies, strict=True):
            verdict, at = permit.examine(args)
            told = expected(reply, row, args)
            if (
                redis_is_wrong(args)
                or verdict in ("by", "get")
                or (verdict == "allowed" != told[0] and loosely_malformed(args))
            ):
                continue
            seen[verdict] = seen.get(verdict, 0) + 1
            named = args[at].partition(b"\0")[0] if verdict in ("key", "channel") else b""
            assert (verdict, named) == told, (user.describe(), args)
    assert min(seen[kind] for kind in ("allowed", "command", "key", "channel")) > 20, seen


def test_every_command_is_in_the_bitmap_of_redis(oracle: Oracle) -> None:
    """Each category, added and taken away: every command of the table."""
    rows = [row for row in ROWS if row.name not in OURS]
    lists = [
        [*row.name.encode().split(b"|"), *[b"k"] * (abs(row.arity) - row.name.count("|") - 1)] for row in rows
    ]
    for category in acl_rules.CATEGORIES:
        for words in (["~*", "&*", f"+@{category}"], ["~*", "&*", "+@all", f"-@{category}"]):
            user, _ = acl_rules.parse("u", words)
            oracle.one("ACL", "SETUSER", "u", "reset", *words)
            permit = Permit(user, TABLE, trust_scripts=True)
            for args, reply in zip(
                lists, oracle.run([("ACL", "DRYRUN", "u", *args) for args in lists]), strict=True
            ):
                assert (permit.examine(args)[0] == "allowed") == (reply == b"OK"), (words, args, reply)

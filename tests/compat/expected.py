"""The lists of expected differences: a line a test, and the comparison with what a run found.

    both   tests/test_commands.py::TestRedisCommands::test_x   why it cannot pass, or not yet

The first word is the protocol: resp2, resp3 or both; then the test, then the reason. A reason that begins
with "now and then:" says that the test may pass, too. Lines that begin with # are comments.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.compat.suite import Outcome

FOLDER = Path(__file__).parent / "expected"
NAMES = {1: "one", 3: "three"}
SOMETIMES = "now and then:"
UNKNOWN = "not explained yet: "


@dataclass(frozen=True)
class Entry:
    test: str
    reason: str


def path(lists: str, nodes: int) -> Path:
    return FOLDER / f"{lists}{NAMES[nodes]}.txt"


def read(lists: str, nodes: int, proto: int) -> dict[str, str]:
    """test → reason; ValueError for a line without a reason. lists: "" of the proxy, "client-"."""
    found = {}
    file = path(lists, nodes)
    for line in file.read_text().splitlines() if file.exists() else ():
        if not line.strip() or line.startswith("#"):
            continue
        which, test, reason = _split(line)
        if which in ("both", f"resp{proto}"):
            found[test] = reason
    return found


def _split(line: str) -> tuple[str, str, str]:
    """Parameters of a test may hold spaces: the reason stands after three of them."""
    which, _, rest = line.partition(" ")
    test, gap, reason = rest.strip().partition("   ")
    if which not in ("both", "resp2", "resp3") or not gap or not reason.strip():
        raise ValueError(f"not `which   test   reason`: {line!r}")
    return which, test, reason.strip()


def write(lists: str, nodes: int, by_proto: Mapping[int, Mapping[str, str]]) -> None:
    """Both protocols' lists (test → reason) as one file, sorted."""
    two, three = by_proto.get(2, {}), by_proto.get(3, {})
    lines = []
    for test in sorted(two.keys() | three.keys()):
        if two.get(test) == three.get(test):
            lines.append(f"both    {test}   {two[test]}")
        else:
            lines += [f"resp{p}   {test}   {d[test]}" for p, d in ((2, two), (3, three)) if test in d]
    heading = "# Written by `python -m tests.compat --accept`; see tests/compat/expected.py\n"
    path(lists, nodes).write_text(heading + "".join(line + "\n" for line in lines))


@dataclass
class Verdict:
    """What a run through the proxy says, beside the same run on a plain Redis."""

    counted: int  # passed directly
    new: dict[str, Outcome]  # fail, and are not expected to
    mended: list[str]  # expected to fail, and pass
    stale: list[str]  # expected to fail, but there is no such test, or it does not pass directly
    known: dict[str, Outcome]

    @property
    def well(self) -> bool:
        return not (self.new or self.mended or self.stale)


def compare(
    direct: Mapping[str, Outcome], proxied: Mapping[str, Outcome], reasons: Mapping[str, str]
) -> Verdict:
    counted = [test for test, it in direct.items() if it.outcome == "passed"]
    missing = Outcome("missing", "the test did not run")
    fail = {t: it for t in counted if (it := proxied.get(t, missing)).outcome != "passed"}
    return Verdict(
        counted=len(counted),
        new={test: it for test, it in fail.items() if test not in reasons},
        mended=[t for t in counted if not reasons.get(t, SOMETIMES).startswith(SOMETIMES) and t not in fail],
        stale=[test for test in reasons if test not in counted],
        known={test: it for test, it in fail.items() if test in reasons},
    )


# What a failed test said → the reason; the first that matches
CAUSES = [
    (
        re.compile(r"'([A-Z|]+(?: [A-Z-]+)?)' is not supported yet: the client's connections are shared"),
        r"\1 concerns one node, or one connection: on_shard(name) has one shard's",
    ),
    (
        re.compile(
            r"has(?: no|n't| does not have the)? attribute '(_?(?:connection|parse_response|on_connect|"
            r"(?:is_)?health_check_response\w*))'"
        ),
        r"it takes hold of \1, which is redis-py's inside",
    ),
    (re.compile("DID NOT WARN"), "close() and reset() are not deprecated here"),
    (re.compile(r"assert \d{10,} == 0"), "a page of SCAN is of one shard: its cursor ends after the last"),
    (re.compile("shards do not answer alike"), "the shards have other users, and on_all() shows whose"),
    (re.compile(r"'([A-Z|]+(?: [A-Z-]+)?)' is not supported(?: yet)?: "), r"\1 is refused"),
    (re.compile(r"'([A-Z_]+)' with (a BY or GET pattern)"), r"\1 with \2 is refused"),
    (
        re.compile(r"(DEBUG ERROR) is not passed to the nodes"),
        r"\1 makes a node answer what it does not mean",
    ),
    (
        re.compile(r"CONFIG SET failed \(.*?'(\w+)'\) - it is the proxy's own"),
        r"CONFIG SET \1 is the proxy's own",
    ),
    (
        re.compile(r"CrossSlot|same slot|CROSSSLOT"),
        "its keys are on several shards, and a cluster refuses it, too",
    ),
]


def guess(it: Outcome) -> str:
    """A reason from what a test said; one that is not understood begins with UNKNOWN."""
    for pattern, reason in CAUSES:
        if found := pattern.search(it.text):
            return found.expand(reason)
    last = it.text.strip().splitlines()[:1]
    return UNKNOWN + (f"{it.outcome}: " + re.sub(r"\s+", " ", last[0] if last else "")[:140])

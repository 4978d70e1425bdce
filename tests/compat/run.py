"""The command line, and the servers: a plain Redis; a proxy or the client library, and their nodes."""

import argparse
import collections
import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from tests.compat import expected, suite
from tests.compat.suite import Outcome, Way
from tests.servers import ProxyProcess, RedisNode, redis_nodes, shards_of, toml

TOP = ""
POOL = 'timeout = "30s"\ncross_shard = "emulate"'  # more of the suite can pass so, and is tested
OPTIONS = ("--enable-module-command", "yes")
CLIENT_POOL = {"timeout": "30s", "connect_timeout": "30s", "cross_shard": "emulate"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.compat", description="redis-py's own test-suite, through the proxy."
    )
    parser.add_argument("only", nargs="*", help="parts: files of the suite whose names match one of these")
    parser.add_argument("--client", action="store_true", help="through the client library, not the proxy")
    parser.add_argument("--nodes", type=int, nargs="+", choices=(1, 3), default=[1, 3])
    parser.add_argument("--proto", type=int, nargs="+", choices=(2, 3), default=[2, 3])
    parser.add_argument("--accept", action="store_true", help="write what fails into the lists")
    parser.add_argument("--fresh", action="store_true", help="run the plain Redis again, too")
    parser.add_argument("--once", action="store_true", help="do not run again what differs")
    parser.add_argument("-v", "--verbose", action="store_true", help="name every test that fails")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what differs there, by cause")
    return parser.parse_args(arguments)


class Subject(NamedTuple):
    """What stands between the suite and the nodes. lists: how the names of its expected differences begin."""

    words: str
    lists: str
    files: Sequence[str]
    serving: Callable[[int], AbstractContextManager[tuple[int, list[int]]]]  # a port, and those of the nodes
    way: Way = suite.PLAIN
    plain: Way = suite.PLAIN


@contextlib.contextmanager
def proxied(nodes: int) -> Iterator[tuple[int, list[int]]]:
    with (
        redis_nodes(nodes, *OPTIONS) as servers,
        ProxyProcess(toml(shards_of(servers), top=TOP, pool=POOL)) as proxy,
    ):
        yield proxy.port, [server.port for server in servers]


@contextlib.contextmanager
def bare(nodes: int) -> Iterator[tuple[int, list[int]]]:
    """The port is that of the first node, for what does not go through our client."""
    with redis_nodes(nodes, *OPTIONS) as servers:
        ports = [server.port for server in servers]
        yield ports[0], ports


PROXY = Subject("the proxy", "", suite.FILES, proxied)
CLIENT = Subject(
    "the client library", "client-", suite.CLIENT_FILES, bare,
    way=Way(True, ("recorder", "sharded"), {"COMPAT_POOL": json.dumps(CLIENT_POOL)}),
    plain=Way(True),
)  # fmt: skip


def again(
    found: dict[str, Outcome], tests: Sequence[str], port: int, nodes: list[int], proto: int, way: Way
) -> None:
    """What differs is run once more, alone: what passes then is not counted as failed."""
    if tests:
        found |= suite.run(port, nodes, proto, tests, way)


def direct(proto: int, files: Sequence[str], fresh: bool, way: Way) -> dict[str, Outcome]:
    """On a plain Redis; kept from run to run, a file each."""
    kept = suite.BUILD / f"direct-{suite.VERSION}{'-hiredis' * way.ours}-resp{proto}"
    kept.mkdir(exist_ok=True)
    found: dict[str, Outcome] = {}
    with contextlib.ExitStack() as stack:
        node = None
        for file in files:
            memory = kept / (file.replace("/", ".") + ".json")
            if memory.exists() and not fresh:
                found |= {test: Outcome(**it) for test, it in json.loads(memory.read_text()).items()}
                continue
            node = node or stack.enter_context(RedisNode(*OPTIONS))
            where = (node.port, [node.port], proto)
            now = suite.run(*where, [file], way)
            again(now, [t for t, it in now.items() if it.outcome == "failed"], *where, way)
            memory.write_text(json.dumps({test: asdict(it) for test, it in now.items()}))
            found |= now
    return found


def through(
    subject: Subject, nodes: int, proto: int, files: Sequence[str], plain: dict[str, Outcome], once: bool
) -> dict[str, Outcome]:
    """Through the proxy, or the client. What fails for no known cause is run again: machines fail, too."""
    reasons = expected.read(subject.lists, nodes, proto)
    with subject.serving(nodes) as (port, behind):
        found = suite.run(port, behind, proto, files, subject.way)
        if not once:
            new = expected.compare(plain, found, reasons).new
            doubtful = [test for test, it in new.items() if expected.guess(it).startswith(expected.UNKNOWN)]
            again(found, doubtful, port, behind, proto, subject.way)
    return found


def summary(subject: Subject, nodes: int, proto: int, verdict: expected.Verdict) -> str:
    failing = len(verdict.new) + len(verdict.known)
    share = 100 * failing / max(1, verdict.counted)
    return (
        f"{nodes} node{'s' * (nodes > 1)}, RESP{proto}: {verdict.counted} pass directly; "
        f"through {subject.words} {failing} of them do not ({share:.1f} %): "
        f"{len(verdict.known)} as expected, {len(verdict.new)} not"
    )


def by_cause(fails: dict[str, Outcome]) -> Iterator[str]:
    causes: dict[str, list[str]] = collections.defaultdict(list)
    for test, it in fails.items():
        causes[expected.guess(it)].append(test)
    for cause, tests in sorted(causes.items(), key=lambda each: -len(each[1])):
        yield f"- {len(tests)} of them: {cause}: " + ", ".join(t.removeprefix("tests/") for t in tests[:4])


def said(verdict: expected.Verdict, reasons: Mapping[str, str], verbose: bool) -> Iterator[str]:
    """What is not as expected: by cause, or with -v test by test."""
    if verbose:
        yield from (f"  fails        {test}   {expected.guess(it)}" for test, it in verdict.new.items())
    else:
        yield from by_cause(verdict.new)
    for word, tests in (("passes now ", verdict.mended), ("not counted", verdict.stale)):
        yield from (f"  {word}  {test}   was expected: {reasons[test]}" for test in tests)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    suite.fetch()
    subject = CLIENT if options.client else PROXY
    if options.client:
        suite.fetch_ours()
    files = [
        each for each in subject.files if not options.only or any(re.search(o, each) for o in options.only)
    ]
    well, report = True, []
    for nodes in options.nodes:
        accepted = {proto: expected.read(subject.lists, nodes, proto) for proto in (2, 3)}
        for proto in options.proto:
            plain = direct(proto, files, options.fresh, subject.plain)
            found = through(subject, nodes, proto, files, plain, options.once)
            if options.client:  # what makes no client of ours says nothing of it
                plain = {test: it for test, it in plain.items() if test not in found or found[test].asked}
            reasons = {t: r for t, r in accepted[proto].items() if t.partition("::")[0] in files}
            verdict = expected.compare(plain, found, reasons)
            print(summary(subject, nodes, proto, verdict), flush=True)
            fails = verdict.new | verdict.known
            report += [f"## {summary(subject, nodes, proto, verdict)}", "", *by_cause(fails), ""]
            if not options.accept:
                for line in said(verdict, reasons, options.verbose):
                    print(line, flush=True)
                well = well and verdict.well
            for test in reasons:
                if test not in fails and not reasons[test].startswith(expected.SOMETIMES):
                    del accepted[proto][test]
            for test, it in fails.items():
                old = accepted[proto].get(test, expected.UNKNOWN)
                if old.startswith(expected.UNKNOWN) or old.endswith(" is refused"):
                    accepted[proto][test] = expected.guess(it)
        if options.accept:
            expected.write(subject.lists, nodes, accepted)
    if options.report:
        options.report.write_text("\n".join(report))
    return 0 if well else 1

"""The command line, and the servers: a plain Redis; a proxy in front of one node or three."""

import argparse
import collections
import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.compat import expected, suite
from tests.compat.suite import Outcome
from tests.servers import ProxyProcess, RedisNode, redis_nodes, shards_of, toml

TOP = ""
POOL = 'timeout = "30s"\ncross_shard = "emulate"'  # more of the suite can pass so, and is tested
OPTIONS = ("--enable-module-command", "yes")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.compat", description="redis-py's own test-suite, through the proxy."
    )
    parser.add_argument("only", nargs="*", help="parts: files of the suite whose names match one of these")
    parser.add_argument("--nodes", type=int, nargs="+", choices=(1, 3), default=[1, 3])
    parser.add_argument("--proto", type=int, nargs="+", choices=(2, 3), default=[2, 3])
    parser.add_argument("--accept", action="store_true", help="write what fails into the lists")
    parser.add_argument("--fresh", action="store_true", help="run the plain Redis again, too")
    parser.add_argument("--once", action="store_true", help="do not run again what differs")
    parser.add_argument("-v", "--verbose", action="store_true", help="name every test that fails")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what differs there, by cause")
    return parser.parse_args(arguments)


def files_of(only: Sequence[str]) -> list[str]:
    return [file for file in suite.FILES if not only or any(re.search(each, file) for each in only)]


@contextlib.contextmanager
def proxied(nodes: int) -> Iterator[tuple[int, list[int]]]:
    """The port of a proxy, and those of the nodes behind it."""
    with (
        redis_nodes(nodes, *OPTIONS) as servers,
        ProxyProcess(toml(shards_of(servers), top=TOP, pool=POOL)) as proxy,
    ):
        yield proxy.port, [server.port for server in servers]


def again(found: dict[str, Outcome], tests: Sequence[str], port: int, nodes: list[int], proto: int) -> None:
    """What differs is run once more, alone: what passes then is not counted as failed."""
    if tests:
        found |= suite.run(port, nodes, proto, tests)


def direct(proto: int, files: Sequence[str], fresh: bool) -> dict[str, Outcome]:
    """On a plain Redis; kept from run to run, a file each."""
    kept = suite.BUILD / f"direct-{suite.VERSION}-resp{proto}"
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
            now = suite.run(node.port, [node.port], proto, [file])
            again(now, [t for t, it in now.items() if it.outcome == "failed"], node.port, [node.port], proto)
            memory.write_text(json.dumps({test: asdict(it) for test, it in now.items()}))
            found |= now
    return found


def through(
    nodes: int, proto: int, files: Sequence[str], plain: dict[str, Outcome], once: bool
) -> dict[str, Outcome]:
    """Through the proxy. What fails for no known cause is run again: it may have been the machine."""
    reasons = expected.read(nodes, proto)
    with proxied(nodes) as (port, behind):
        found = suite.run(port, behind, proto, files)
        if not once:
            new = expected.compare(plain, found, reasons).new
            doubtful = [test for test, it in new.items() if expected.guess(it).startswith(expected.UNKNOWN)]
            again(found, doubtful, port, behind, proto)
    return found


def summary(nodes: int, proto: int, verdict: expected.Verdict) -> str:
    failing = len(verdict.new) + len(verdict.known)
    share = 100 * failing / max(1, verdict.counted)
    return (
        f"{nodes} node{'s' * (nodes > 1)}, RESP{proto}: {verdict.counted} pass directly; through the proxy "
        f"{failing} of them do not ({share:.1f} %): {len(verdict.known)} as expected, {len(verdict.new)} not"
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
    files = files_of(options.only)
    well, report = True, []
    for nodes in options.nodes:
        accepted: dict[int, dict[str, str]] = {proto: expected.read(nodes, proto) for proto in (2, 3)}
        for proto in options.proto:
            plain = direct(proto, files, options.fresh)
            found = through(nodes, proto, files, plain, options.once)
            reasons = {t: r for t, r in accepted[proto].items() if t.partition("::")[0] in files}
            verdict = expected.compare(plain, found, reasons)
            print(summary(nodes, proto, verdict), flush=True)
            fails = verdict.new | verdict.known
            report += [f"## {summary(nodes, proto, verdict)}", "", *by_cause(fails), ""]
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
            expected.write(nodes, accepted)
    if options.report:
        options.report.write_text("\n".join(report))
    return 0 if well else 1

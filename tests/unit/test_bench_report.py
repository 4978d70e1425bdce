"""The benchmark's judgement: ratios are taken within a round, and a goal that is missed says so."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench import report
from tests.bench.load import Load, Sample
from tests.bench.measures import MEASURES, Goal, Measure
from tests.bench.memory import Footprint


def rounds(cpu: list[float], rps: float) -> list[Sample]:
    return [{"cpu": value, "rps": rps, "p50": 1.0, "p99": 1.0} for value in cpu]


def table(ours: list[Sample], *, peers: tuple[str, ...] = ("twemproxy", "shardproxy")) -> str:
    measure = Measure("m", Load("GET"), (Goal("cpu", {"twemproxy": 0.9}), Goal("rps", {"twemproxy": 1.0})))
    samples = {"twemproxy": rounds([10, 20, 30], 1000), "shardproxy": ours}
    return report.load_table({"m": samples}, [measure], peers)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    lines = table(rounds([9, 2, 18], 2000)).splitlines()
    assert cells(lines[2]) == [
        "m",
        "CPU, µs a request",
        "20.0 (15.0 - 25.0)",
        "9.00 (5.50 - 13.5)",
        "0.60 (0.35 - 0.75)",
        "≤ 0.90 twemproxy",
        "yes",
    ]


@pytest.mark.parametrize(
    ("cpu", "rps", "verdicts"),
    [
        ([9, 18, 27], 1000, ["yes", "yes"]),
        ([9.1, 18.2, 27.3], 1000, ["**no**", "yes"]),
        ([9, 18, 27], 999, ["yes", "**no**"]),
    ],
)
def test_a_goal_is_met_up_to_its_limit(cpu: list[float], rps: float, verdicts: list[str]) -> None:
    lines = table(rounds(cpu, rps)).splitlines()[2:]
    assert [cells(line)[-1] for line in lines] == verdicts


def test_without_shardproxy_nothing_is_judged() -> None:
    lines = table([], peers=("twemproxy",)).splitlines()[2:]
    assert [cells(line)[-1] for line in lines] == ["", ""]


def test_every_goal_shows_a_metric_that_the_table_can_name() -> None:
    assert all(goal.metric in report.UNITS for measure in MEASURES for goal in measure.goals)
    assert len({measure.title for measure in MEASURES}) == len(MEASURES)


def test_memory_is_judged_against_goal_and_budget() -> None:
    good = Footprint(50_000_000, 60_000_000, 500_000_000, 55_000_000, 0, False)
    bad = Footprint(50_000_000, 70_000_000, 2_000_000_000, 90_000_000, 3, True)
    for footprint, met in ((good, "yes"), (bad, "**no**")):
        text = report.memory_table({"shardproxy": footprint}, {"shardproxy": footprint}, 10_000, 1 << 30)
        lines = text.splitlines()[2:7]
        assert [cells(line)[-1] for line in lines] == [met, "", met, met, ""]
        assert ("stopped" in text) is footprint.stopped


@pytest.mark.parametrize(
    ("value", "text"), [(0.456, "0.46"), (9.995, "10.0"), (99.95, "100"), (1234.5, "1,234"), (7, "7")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text

"""docs/sessions.md names a test for each item of OWASP's checklist: they exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_the_checklists_tests_exist() -> None:
    text = (TESTS.parent / "docs" / "sessions.md").read_text()
    section = re.search(r"^## OWASP's checklist\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section
    rows = [row for row in section[1].splitlines() if row.startswith("| ")][1:]
    named, last = 0, ""
    for row in rows:
        for file, test in re.findall(r"`([\w/.]*)::(\w+)`", row.rsplit("|", 2)[1]):
            last = file or last
            path = TESTS / last if "/" in last else TESTS / "integration" / last
            assert f"def {test}(" in path.read_text(), f"{last}::{test}"
            named += 1
        assert "::" in row or "the same" in row, row
    assert named > 10

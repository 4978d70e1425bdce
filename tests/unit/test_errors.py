"""core/errors: one page for all texts. What the engine says in C is on it too, word for word."""

import re
from pathlib import Path

from shardproxy.core import errors

DATAPLANE = Path(__file__).parents[2] / "shardproxy" / "dataplane"
# A literal that begins an error, and the literals that continue it on the next lines
LITERAL = re.compile(r'b?"(-[A-Z]+ (?:[^"\\]|\\.)*)"((?:\s*b?"(?:[^"\\]|\\.)*")*)')
CONVERSION = re.compile(r"%(?:\.(?:\d+|\*))?(?:llu|[sbdu])")


def said_by_the_engine() -> set[str]:
    found = set()
    for path in DATAPLANE.glob("*.pyx"):
        for first, more in LITERAL.findall(path.read_text()):
            text = first + "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', more))
            found.add(CONVERSION.sub("{}", text.split(r"\r\n")[0]).removeprefix("-"))
    return found


def test_the_page_has_what_the_engine_says() -> None:
    assert said_by_the_engine() == set(errors.ENGINE)


def test_every_text_begins_with_a_code() -> None:
    texts = [value for name, value in vars(errors).items() if name.isupper() and isinstance(value, str)]
    assert len(texts) > 8
    for text in (*texts, *errors.ENGINE):
        assert re.match(r"[A-Z]+ \S|ERR \{\}$", text), text
        assert "\r" not in text and "\n" not in text and not text.startswith("-"), text


def test_what_a_client_sent_is_cut() -> None:
    assert errors.shown(b"abc\0def") == "abc"
    assert errors.shown(b"x" * 500) == "x" * 128

"""Glob patterns as Redis matches them: PSUBSCRIBE, KEYS.  * ? [a-z] [^abc] \\x

Pure. A pattern is compiled once, into one set of bytes for each byte that it takes and STAR for any number of them;
so a hostile one costs its length times the text's at most, where Redis's own may take for ever.
"""

from functools import lru_cache

STAR = None
ANY = frozenset(range(256))

Token = frozenset[int] | None


def matches(pattern: bytes, text: bytes) -> bool:
    """Whether the whole text is what the pattern says."""
    tokens = _compiled(pattern)
    at = star = since = 0
    last = -1  # the last star: everything before it has matched
    for_star = False
    while since < len(text):
        token = tokens[at] if at < len(tokens) else frozenset()
        if at < len(tokens) and token is STAR:
            last, star, for_star = at, since, True
            at += 1
        elif token is not None and text[since] in token:
            at, since = at + 1, since + 1
        elif for_star:
            star += 1  # the star takes one more
            at, since = last + 1, star
        else:
            return False
    return all(token is STAR for token in tokens[at:])


@lru_cache(maxsize=1024)
def _compiled(pattern: bytes) -> tuple[Token, ...]:
    tokens: list[Token] = []
    at = 0
    while at < len(pattern):
        byte = pattern[at]
        at += 1
        if byte == ord("*"):
            if not tokens or tokens[-1] is not STAR:
                tokens.append(STAR)
        elif byte == ord("?"):
            tokens.append(ANY)
        elif byte == ord("["):
            token, at = _one_of(pattern, at)
            tokens.append(token)
        else:
            if byte == ord("\\") and at < len(pattern):
                byte = pattern[at]
                at += 1
            tokens.append(frozenset((byte,)))
    return tuple(tokens)


def _one_of(pattern: bytes, at: int) -> tuple[frozenset[int], int]:
    """What is between brackets, of which the last may be missing; and where it ends."""
    found: set[int] = set()
    negated = pattern[at : at + 1] == b"^"
    at += negated
    while at < len(pattern):
        byte = pattern[at]
        if byte == ord("\\") and at + 1 < len(pattern):
            found.add(pattern[at + 1])
            at += 2
        elif byte == ord("]"):
            at += 1
            break
        elif at + 2 < len(pattern) and pattern[at + 1] == ord("-"):
            low, high = sorted((byte, pattern[at + 2]))
            found.update(range(low, high + 1))
            at += 3
        else:
            found.add(byte)
            at += 1
    return (ANY - found if negated else frozenset(found)), at

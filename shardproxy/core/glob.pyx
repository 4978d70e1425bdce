"""Patterns as Redis matches them (KEYS, PSUBSCRIBE, ACL): * ? [a-z] [^a] and \\ before a character.

Compatible to the odd corners: an empty text matches the empty pattern only (not even "*"), a "[" that is not closed
goes to the end, ranges may be written backwards and count bytes as signed. Of several stars only the last one is ever
tried again, so the time is at most the product of both lengths, never exponential.
"""


cdef bint one(const char *p, size_t n, size_t *at, char c) noexcept nogil:
    """Whether c matches the part of the pattern that begins at `at`, which moves behind that part."""
    cdef size_t i = at[0]
    cdef bint negated, found = False
    cdef char low, high
    if p[i] == c'?':
        at[0] = i + 1
        return True
    if p[i] != c'[':
        if p[i] == c'\\' and i + 1 < n:
            i += 1
        at[0] = i + 1
        return p[i] == c
    i += 1
    negated = i < n and p[i] == c'^'
    if negated:
        i += 1
    while i < n:
        if p[i] == c'\\' and i + 1 < n:
            i += 1
            found |= p[i] == c
        elif p[i] == c']':
            break
        elif i + 2 < n and p[i + 1] == c'-':
            low = p[i] if p[i] < p[i + 2] else p[i + 2]
            high = p[i + 2] if p[i] < p[i + 2] else p[i]
            found |= low <= c <= high
            i += 2
        else:
            found |= p[i] == c
        i += 1
    at[0] = i + 1 if i < n else n
    return found != negated


cdef bint glob_match(const char *pattern, size_t pattern_size, const char *text, size_t size) noexcept nogil:
    cdef size_t i = 0, j = 0, after_star = 0, from_text = 0
    cdef bint star = False
    if size == 0:
        return pattern_size == 0
    while j < size:
        if i < pattern_size and pattern[i] == c'*':
            i += 1
            if i == pattern_size:
                return True
            star = True
            after_star = i
            from_text = j
        elif i < pattern_size and one(pattern, pattern_size, &i, text[j]):
            j += 1
        elif star:
            from_text += 1
            j = from_text
            i = after_star
        else:
            return False
    while i < pattern_size and pattern[i] == c'*':
        i += 1
    return i == pattern_size


def matches(bytes pattern, bytes text):
    return glob_match(pattern, len(pattern), text, len(text))

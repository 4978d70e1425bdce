# Whether text matches a pattern, as Redis's stringmatchlen says.
cdef bint glob_match(const char *pattern, size_t pattern_size, const char *text, size_t size) noexcept nogil

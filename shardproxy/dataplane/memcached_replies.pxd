from shardproxy.dataplane.engine cimport Engine, Entry, Node, Upstream

# What the replies to one request, Entry.total of them, are made into for who asked
cdef enum Form:
    RAW = 0                     # nothing: a handler gets them as they are
    VALUE = 1                   # VA: a bulk; EN: nil
    STATUS = 2                  # HD: OK; NS: nil
    SUM = 3                     # how many said HD
    SIZE = 4                    # HD s5: 5; EN: 0
    ARRAY = 5                   # of VALUEs; always a part of a split command, so that a half of it can be taken back
    ALL = 6                     # OK when all said HD

# What an upstream to a memcached has read.
cdef void meta_replies(Engine e, Upstream *u) noexcept
# Into e.text: the node's limit.
cdef void too_large(Engine e, Node *node) noexcept
# The request is sent again: what has come of its replies does not count.
cdef void rewind(Engine e, Entry *entry) noexcept

from shardproxy.core.buffers cimport Buf
from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.core.script_store cimport Script
from shardproxy.dataplane.engine cimport Client, Engine, Node, Upstream

# Of a command that may call one: its script, if its text is here; what EVAL brings is kept on the way.
cdef Script *script_of(Engine e, const Request *r, const Row *row) noexcept
# After the promise of a command that calls this script: the node is sent its text first, unless that is there.
cdef void precede(Engine e, Upstream *u, Script *script) noexcept
# The same for all that the transaction of this client calls.
cdef void precede_run(Engine e, Upstream *u, Client *c) noexcept
# The node for a script, or a function, without a key; NO_KEY: it is neither.
cdef int node_of_script(Engine e, const Request *r, const Row *row) noexcept
cdef int node_of_run(Engine e, Client *c) noexcept
# A request that an upstream owes, p[0 .. n), for another connection: its script's text goes into `out` first. How many bytes.
cdef size_t precede_again(Engine e, const char *p, size_t n, Buf *out) noexcept
# What this connection's node knows is known no more.
cdef void unlearn(Upstream *u) noexcept nogil
cdef void unlearn_node(Node *node) noexcept nogil
cdef bytes teach(Engine e, bytes text, bint loaded)
cdef void forget_scripts(Engine e) noexcept
cdef list all_scripts(Engine e)
cdef Script *script_find(Engine e, const char *hex, size_t n) noexcept

"""Who may run what: a client's permit, checked before anything is done with a command.

Rules: a client that may do everything has no permit (NULL), and costs routing one branch. Every command is checked when
it is taken from the input, also between MULTI and EXEC; a denied one goes nowhere. Errors have Redis's own texts. Permits
are made for a table and a set of users, and replaced with either; a client is known by its user's name.
"""

from libc.stdint cimport uint32_t

from shardproxy.core.commands cimport KIND_MULTI, Row
from shardproxy.core.permit cimport (
    ALLOWED, DENIED_BY, DENIED_CHANNEL, DENIED_COMMAND, DENIED_GET, DENIED_KEY, NOT_LOGGED_IN, Permit,
)
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.answers cimport refuse_bytes
from shardproxy.dataplane.client_handle cimport client_handle
from shardproxy.dataplane.counters cimport DENIED
from shardproxy.dataplane.engine cimport TX_BROKEN, Client, Engine
from shardproxy.dataplane.slots cimport client_close
from shardproxy.dataplane.transactions cimport abort_exec

DEFAULT = "default"


cdef bint permitted(Engine e, Client *c, Request *r, const Row *row) noexcept:
    cdef int at = 0
    cdef int verdict
    cdef bytes why
    verdict = (<Permit>c.permit).check(row, r.argc, r.argv, r.argl, &at)
    if verdict == ALLOWED:
        return True
    e.count[<int>DENIED] += 1
    if verdict != NOT_LOGGED_IN:
        tell(e, c, r, row, verdict, at)
    why = reason(row, verdict)
    if row.kind == KIND_MULTI and row.name[0] == c'e':
        abort_exec(e, c, why[1:])
    else:
        refuse_bytes(e, c, why + b"\r\n")
    return False


cdef bytes reason(const Row *row, int verdict):
    if verdict == NOT_LOGGED_IN:
        return b"-NOAUTH Authentication required."
    if verdict == DENIED_COMMAND:
        return b"-NOPERM this user has no permissions to run the '%b' command" % row.name
    if verdict == DENIED_KEY:
        return b"-NOPERM this user has no permissions to access one of the keys used as arguments"
    if verdict == DENIED_CHANNEL:
        return b"-NOPERM this user has no permissions to access one of the channels used as arguments"
    if verdict == DENIED_BY:
        return b"-ERR BY option of SORT denied due to insufficient ACL permissions."
    if verdict == DENIED_GET:
        return b"-ERR GET option of SORT denied due to insufficient ACL permissions."
    return (b"-NOPERM '%b' of a user who may not do everything: a node would run the script without this user's rules. "
            b"If its scripts are to be trusted: user_scripts = 'trust' in shardproxy.toml" % row.name)


cdef void tell(Engine e, Client *c, Request *r, const Row *row, int verdict, int at) noexcept:
    """An entry for ACL LOG."""
    cdef bytes what
    what = r.argv[at][:r.argl[at]] if verdict == DENIED_KEY or verdict == DENIED_CHANNEL else row.name
    e.event("denied", {
        "client": client_handle(e, c),
        "user": (<Permit>c.permit).user.name,
        "reason": "key" if verdict == DENIED_KEY else "channel" if verdict == DENIED_CHANNEL else "command",
        "context": "multi" if c.tx_state else "toplevel",
        "object": what[:1024],
    })


cdef void note_login(Engine e, Client *c, bytes name) noexcept:
    cdef dict mine = e.meta.get(c.id)
    before = mine.pop("user", None) if mine is not None else None
    if before is not None:
        e.logins_of[before] -= 1
        if e.logins_of[before] == 0:
            del e.logins_of[before]
    if name is not None:
        e.meta.setdefault(c.id, {})["user"] = name
        e.logins_of[name] = e.logins_of.get(name, 0) + 1


cdef void assign(Engine e, Client *c) noexcept:
    cdef dict mine = e.meta.get(c.id)
    cdef bytes name = mine.get("user") if mine is not None else None
    c.permit = e.newcomer if name is None else pointer(e.permits[name.decode(errors="surrogateescape")])


cdef void *pointer(object permit) noexcept:
    return NULL if permit.everything else <void *>permit


cdef int install_users(Engine e) except -1:
    cdef uint32_t i
    cdef Client *c
    cdef bytes name
    cdef dict mine, before = e.permits
    if e.table is None or e.users is None:
        return 0
    permits = {user.name: Permit(user, e.table, e.users.trust_scripts) for user in e.users.by_name.values()}
    permits[None] = Permit(None, e.table)
    e.permits = permits
    e.guarded = not e.users.default.open
    e.stranger = <void *>permits[None]
    e.newcomer = e.stranger if e.guarded else pointer(permits[DEFAULT])
    for i in range(e.client_room):
        c = e.client_list[i]
        if c == NULL or c.dead:
            continue
        mine = e.meta.get(c.id)
        name = mine.get("user") if mine is not None else None
        text = DEFAULT if name is None else name.decode(errors="surrogateescape")
        if text not in permits:
            c.permit = e.stranger
            if not c.leaving:       # who has removed itself is still answered
                client_close(e, c, "its user was removed")
            continue
        known = before.get(text)
        if c.tx_state and known is not None and known.user != permits[text].user:
            c.tx_state = TX_BROKEN      # what it has queued may not be its to run any more
        assign(e, c)
    return 0

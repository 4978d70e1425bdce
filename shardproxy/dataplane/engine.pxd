# The engine's data: every struct that a request passes through, and the state they share.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from shardproxy.core.buffers cimport Buf
from shardproxy.core.commands cimport CommandTable
from shardproxy.core.fanout cimport Fan
from shardproxy.core.resp cimport Progress, Request, Scan
from shardproxy.core.ring cimport Ring
from shardproxy.core.script_store cimport Scripts
from shardproxy.dataplane.counters cimport BUCKETS
from shardproxy.dataplane.stale cimport Stale

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr_storage:
        unsigned short ss_family

cdef enum:
    MAX_UPSTREAMS = 65536
    MAX_SHARED = 16             # shared upstreams of one node and protocol
    SCRATCH = 65536             # one read from a client
    CIPHER = 65536              # one read of an encrypted connection
    STREAM_ABOVE = 65536        # a frame larger than this is passed on as it comes
    TEXT = 320

# What an epoll event is about: kind << 62 | (generation & 0x3fffffff) << 32 | index.
cdef enum:
    OF_CLIENT = 0
    OF_UPSTREAM = 1
    OF_LISTENER = 2
    OF_WAKE = 3                 # or, with index 1, the timer

cdef enum:
    REPLY_ON = 0
    REPLY_OFF = 1
    REPLY_SKIP = 2              # the next command's only

cdef enum:
    PAUSE_WRITES = 1
    PAUSE_ALL = 2

cdef enum:
    TX_NONE = 0
    TX_OPEN = 1
    TX_BROKEN = 2               # a command could not be queued: EXEC answers EXECABORT

# Defined below
cdef struct Upstream

# The place in a client's reply queue that one command fills, with 0 to n frames.
cdef struct Slot:
    Buf held                    # frames that came before it was at the head
    Fan *fan                    # the command was split: not merged yet
    uint32_t cost               # bytes of its request, while that may wait for a node
    uint8_t filled
    uint8_t discard             # CLIENT REPLY OFF: what fills it is thrown away

# A client that waits until its address has room
cdef struct Waiter:
    uint32_t index
    uint32_t generation

# All clients of one address, when there are limits for that: see origins.
cdef struct Origin:
    char address[16]
    int size                    # of it
    uint32_t clients
    uint64_t requests           # in flight
    uint64_t bytes              # of them, and of replies that are not taken yet
    Waiter *waiting             # waiting[head .. tail), each at [number & mask]
    uint32_t head
    uint32_t tail
    uint32_t mask

cdef struct Client:
    # what every request touches, in as few cache lines as it fits in
    uint32_t index
    uint32_t generation
    uint32_t head               # slots[head .. tail), counted for ever, each at [number & mask]
    uint32_t tail
    uint32_t mask
    uint16_t last_row
    uint8_t proto
    uint8_t reply_mode
    Slot *slots
    size_t held                 # reply bytes in slots
    size_t sent                 # request bytes in flight
    void *permit                # core/permit.Permit, which Engine.permits keeps; NULL: everything is allowed
    Origin *origin              # NULL: no address has a limit
    Buf out
    Buf inp                     # what was read and is not a whole command yet, or waits
    uint64_t commands
    uint64_t wrote              # bit (number of a node) % 64: it has written there
    Upstream *own               # its private upstreams, one a node at most, chained by next_own
    uint16_t db
    uint8_t lanes               # connections a node that it is one client in so many of: see keep_lane
    uint8_t lane                # which of them is its
    uint8_t tx_state
    uint8_t caching             # CACHING_YES or CACHING_NO for its next command
    bint midway                 # part of the reply at the head of its queue is out
    bint dirty                  # has output, or interest to change, at the end of the tick
    bint dead
    bint leaving                # closed when its last reply is out
    bint holding                # its next commands wait until all before them are answered
    bint subscriber             # it has subscribed to something
    bint tracking               # CLIENT TRACKING: all its upstreams are its own, and their pushes go to it
    Progress progress
    Buf aside                   # pushes that wait until the frame that is going out is complete
    uint64_t active
    int fd
    uint32_t events             # what epoll watches
    void *tls                   # a Tls that is ours; NULL: not encrypted
    bint opening                # before its first command: a PROXY header, a TLS handshake
    bint eof                    # the client has sent its last byte
    bint stalled                # its input waits: budget, or a barrier
    bint blocked                # the socket takes no more output now
    bint hung                   # the other side is gone, out of the epoll set: what it has sent is read by hand
    bint waiting                # a blocking command of its waits on a private upstream
    bint parting                # it has closed its side while it waited
    bint resuming               # in the list of those whose input is looked at again
    # and the rest
    uint64_t id
    uint64_t created            # us, as everything that is a time here
    uint32_t calls              # handlers that have not answered yet
    uint32_t unsure             # Engine.losses, when a write of its was lost then: see losses.order
    uint64_t over_since         # us: a subscriber is owed more than pubsub_output_soft; 0: it is not
    uint64_t waits_since        # us
    bint unwatched              # what it watches may have changed unseen: its EXEC finds nothing
    int32_t watching            # the node on which it watches keys; -1: none
    uint32_t watch_placement    # Engine.placement at its first WATCH
    bint barred                 # it waits until all that was sent before is answered
    bint no_evict
    bint no_touch
    int32_t tx_shard            # -1: no key yet
    uint32_t tx_count
    bint tx_mixed               # some of its commands are a handler's: so is its EXEC
    bint tx_replicates          # some of them write, or may
    uint32_t watched            # keys that it has named to WATCH
    bint paused                 # its next command waits for the end of CLIENT PAUSE, or of a hold
    bint monitors               # it is shown what others send
    uint32_t tx_placement       # Engine.placement at its first key
    uint64_t tx_allowed         # us: the longest of its commands' times
    bint tx_calls               # it calls scripts or functions
    uint64_t counted_requests   # its part of the origin's
    size_t counted_bytes
    bint in_line                # at its origin
    Buf tx                      # MULTI and the commands after it, as they came

cdef enum:
    TO_CLIENT = 0
    TO_PART = 1                 # of a split command
    TO_NOBODY = 2               # thrown away
    TO_LATE = 3                 # its deadline has passed: thrown away, and counted
    TO_ASK = 4                  # a handler's own request: `slot` is its number in Engine.asks

# Who an upstream's next reply is for.
cdef struct Entry:
    uint32_t client
    uint32_t generation
    uint32_t slot
    uint16_t part
    uint8_t to
    uint8_t write
    uint8_t tries               # sendings left, this one too; 0: not to be sent again, nor elsewhere, even if unwritten
    uint8_t form                # of a memcached's replies: what they are made into, see memcached.Form
    uint8_t trusting            # it calls scripts that its node should know
    uint8_t fault               # the gravest of what a memcached has refused of it: see memcached_replies
    uint32_t frames             # replies still to come
    uint64_t at                 # when this try of it began: when it was read, or could go out (again)
    uint64_t asked              # when the request was read
    uint64_t due                # when it is answered TIMEOUT: dues.NEVER for some
    uint64_t start              # of its bytes in all that this upstream was given
    uint64_t prefix             # bytes of SCRIPT LOADs among these, in front
    uint32_t loads              # of these; their replies come first, and are nobody's
    uint32_t skip               # of these, still to come
    uint32_t total              # of a memcached's replies: `frames` at first; 0: it is a Redis
    uint32_t tally              # what those that have come add up to

# Entry.part of one that is TO_NOBODY
cdef enum:
    SAID = 0                    # to the connection: SELECT, UNWATCH, CLIENT ...
    QUEUED = 1                  # the +OK and +QUEUED of the transaction whose EXEC comes next: no bytes of its own

cdef enum:
    DOWN = 0
    CONNECTING = 1
    GREETING = 2                # connected; HELLO and AUTH are not answered yet
    UP = 3

# Why a private upstream is still its client's
cdef enum:
    WATCHING = 1                # keys are watched on it
    WAITING = 2                 # a blocking command is on it
    KEPT = 4                    # a handler's: until it says otherwise
    TRACKING = 8                # the node remembers for it what the client has read

# CLIENT CACHING
cdef enum:
    CACHING_YES = 1
    CACHING_NO = 2

cdef struct Upstream:
    # what every request touches, in as few cache lines as it fits in
    uint32_t index
    uint32_t generation
    uint32_t head
    uint32_t tail
    uint32_t mask
    uint16_t node               # NOWHERE: nobody's, to be used again
    uint8_t proto
    uint8_t lease               # WATCHING | WAITING | KEPT
    Entry *fifo                 # fifo[head .. tail), each at [number & mask]
    uint64_t given              # bytes put into out, ever
    uint64_t written
    uint8_t state
    uint8_t place               # which of the node's shared ones of its protocol and database
    uint16_t db
    bint dirty
    bint doomed                 # to be reset at the end of the tick, for `why`
    bint private                # one client's, or a handler's, at a time
    uint32_t late               # fifo[head .. late) have passed their deadline; behind it some may have: see dues
    Buf out
    uint64_t base               # where out begins in all that this upstream was given
    uint32_t kept               # the first entry of which out may still be needed: requests are kept until answered
    uint32_t disorder           # from here on entries fall due in their order, after all before them
    uint64_t latest             # no entry is due later
    uint64_t look               # nothing falls due before
    Buf inp
    Scan scan
    size_t scanned              # bytes of the frame at inp's head that the scanner is done with
    bint midway                 # part of the frame being read has been passed on
    bint push                   # the frame being read is a push
    bint raised                 # its proto is 3, its node speaks RESP2 only: replies are made RESP3 of
    bint stream                 # every frame goes to the Link: no reply belongs to a request
    bint proved                 # this connection has answered a request
    bint recalled               # what waits on it has been told to let go, because of that; its nil is not its client's
    uint64_t moving             # us: what it waits for is elsewhere now, and it is to be there by then; 0: it is not
    uint64_t progress           # when it last answered something or was idle
    uint64_t done               # requests answered since `measured`
    uint64_t again              # up to here are requests that are sent again, in portions: see upstreams.portion
    # and the rest
    int fd
    bint owned                  # some client's: of this index and generation
    uint32_t owner
    uint32_t owner_generation
    Upstream *next_own
    uint64_t wait_until         # us: when what blocks must have been answered; 0: never
    uint64_t wait_ends          # us: when its own time is over; 0: never
    bint spent                  # the node has been told to let it go, and may be so later: for nobody else
    bint unblocked              # a CLIENT UNBLOCK for it may come late: nothing waits on it any more
    char refusal[160]           # why the node would not queue a command of the transaction that is on it; empty: it did
    bint linked                 # Engine.links has a Link for it, which gets its pushes
    bint over                   # private, and lost: to be given up at the end of the tick
    uint64_t idle_since         # of one that waits in the pool for its next client
    Upstream *before            # in the list of its node's
    Upstream *after
    void *tls                   # a Tls that is ours; NULL: not encrypted
    bint wanted                 # somebody has asked for it: kept connected
    uint32_t events
    int greetings               # replies to the greeting still to come
    int64_t greeted             # us, by the wall clock: when the greeting was sent, to a memcached
    int extras                  # and to what follows it: SELECT, a Link's setup
    uint32_t unsent             # that fell due before they were written, since they were last taken out
    uint64_t walked             # when it was last looked for what has fallen due
    bint more                   # the last read was full: there may be more to read
    bint full                   # the socket took no more when last written to
    uint32_t fence              # settled when head, or late, has come this far
    bint fenced
    int64_t id                  # CLIENT ID on the node; 0: not known
    char address[64]            # ours, as the node sees it; empty: not known
    uint32_t killing            # before it is up: of Engine.killed those that are not known to be gone yet
    uint64_t asked              # us: when a memcached was first asked whether they are
    bint looking                # it is being asked
    uint64_t since              # when it was connected
    uint64_t measured
    double rate                 # answers a second, when there was something to do
    uint64_t retry_at
    int failures                # connections in a row that failed
    unsigned char *known        # scripts that its node has been told of on this connection: a bit each, by number
    uint32_t known_room         # bytes of these
    char why[TEXT]

# What a request for a node's shard gets now: core/topology.Mode
cdef enum:
    SERVE = 0
    FAIL = 1
    MISS = 2
    HOLD = 3
    MOVE = 4

cdef enum:
    NOWHERE = 0xffff            # no node

cdef struct Node:
    bint used                   # this number is somebody's
    bint memcached              # it speaks the meta protocol, not RESP
    int64_t item_most           # a memcached's: bytes of an item, with its key and header; 0: not known yet
    int64_t ahead               # us: its clock, in whole seconds, less ours
    bint clock_known
    bint gone                   # its shard is no longer in the topology: it only finishes what it has
    bint out                    # no connection is made to it
    bint stays                  # fail open: no verdict on it is coming, so that nothing is held for it
    uint8_t mode
    uint16_t follows            # the node that had this shard before: its requests in flight are waited for
    sockaddr_storage address
    uint32_t address_size
    bint resolved
    uint8_t speaks              # the newest protocol that it has agreed to, 2 or 3; 0: not known yet
    char name[256]              # host:port, for people
    char shard[128]             # whose node it is
    Upstream *first                         # all its upstreams, chained by `after`
    Upstream *shared[2][MAX_SHARED]         # of RESP2 and of RESP3, database 0: the quick way to most
    Upstream *pool                          # private ones that are nobody's, chained by next_own
    uint32_t privates                       # all private ones
    char why[TEXT]              # why it cannot be reached; empty: it can, as far as known
    uint64_t requests[2]        # of reads and of writes, as the next two
    uint64_t errors[2]
    uint64_t latency[2][BUCKETS]
    uint64_t lost
    uint64_t timeouts
    uint64_t retries
    # evidence of its health since it was last asked for
    uint64_t ok
    uint64_t failed
    uint64_t slow
    uint64_t streak             # failures since its last success; stays
    uint64_t blamed             # when a deadline was last held against it
    uint64_t slowed             # when a slow reply was
    bint refused                # a connection was refused
    bint failing                # this tick has said so already
    char failure[TEXT]          # the last one

cdef struct Budget:
    uint32_t clients
    uint32_t requests           # in flight, of one client
    uint32_t per_address        # clients of one address; 0: any number, as of the next two
    uint64_t address_requests   # in flight, of all of them: none of them is read beyond it
    uint64_t address_bytes      # of theirs, in flight or reply: the same
    size_t soft                 # bytes of one client, in flight or reply: not read beyond it
    size_t hard                 # closed beyond it
    size_t pubsub_soft          # a subscriber that is owed more for pubsub_time is closed
    size_t pubsub_hard          # or more than this, at once
    uint64_t pubsub_time        # us
    size_t memory               # of the process
    size_t queue                # waiting to be written to all upstreams, each its part
    uint64_t idle               # us; 0: for ever

cdef class Engine:
    cdef int epoll
    cdef int wake_fd
    cdef int timer_fd
    cdef uint64_t armed                     # the time that the timer was set for; dues.NEVER: it is off
    cdef bint in_tick
    cdef bint awake                         # the wake descriptor is readable
    cdef bint closed
    cdef bint closing                       # nothing is sent any more
    cdef bint draining
    cdef uint64_t grace_ends                # when a client with half a command is waited for no more
    cdef uint64_t now                       # us, monotonic, of this tick
    cdef Client **client_list
    cdef uint32_t *client_generations
    cdef uint32_t client_room
    cdef uint32_t client_count
    cdef uint32_t *free_clients
    cdef uint32_t free_count
    cdef Upstream **upstreams
    cdef uint32_t upstream_count            # numbers up to here have been used
    cdef uint32_t shared_count              # upstreams that many clients share
    cdef uint32_t *dirty_upstreams          # indices; an upstream is in there once (its flag)
    cdef uint32_t dirty_upstream_count
    cdef uint32_t *spare_upstreams          # indices of those that are nobody's
    cdef uint32_t spare_upstream_count
    cdef uint32_t over_count                # private ones to be given up at the end of the tick
    cdef uint32_t private_most              # private ones of one node
    cdef dict asks                          # number -> Ask
    cdef uint32_t next_ask
    cdef dict links                         # upstream index -> Link
    cdef list told                          # (callback, arguments): for the end of the tick
    cdef bint blocks                        # what was located last waits for data
    cdef dict counted_channels              # PUBLISH to these goes to a handler, which puts its count right
    cdef dict counted_shards                # SPUBLISH, likewise
    cdef bint counted_patterns              # every PUBLISH does
    cdef bint some_are_over                 # some Client.over_since is set
    cdef bint some_are_parting              # some Client.parting is set
    cdef Node **node_list                   # by number; a number is used again, the memory never moves
    cdef int node_count                     # numbers up to here have been used
    cdef const char **shard_names           # by node number
    cdef uint16_t *shards                   # by place on the ring: the node's number
    cdef unsigned char *absent              # by place on the ring: its keys are elsewhere, and none come here
    cdef unsigned char **apart              # the same, or it is of the other protocol: [0] for keys of Redis, [1] of memcached
    cdef bint memcached                     # some shard is a memcached's
    cdef unsigned char *ops                 # by Row.id: memcached.Op
    cdef int shard_count                    # places on the ring
    cdef bint moving                        # some who wait are to wait elsewhere
    cdef uint8_t pausing                    # CLIENT PAUSE
    cdef uint64_t pause_ends
    cdef uint64_t held_until                # us; 0: no keys are about to move, see observing.hold
    cdef object on_command                  # for MONITOR; None: nobody is shown anything
    cdef bint displacing                    # some keys are not at home
    cdef bint holds                         # the pool rehashes: what cannot be sent waits for the verdict
    cdef bint displaced                     # a key of what was located last is not at home
    cdef bint emulates                      # the pool's cross_shard = "emulate"
    cdef bint reads_miss                    # the pool's on_shard_down = "miss"
    cdef bint missing                       # upstream_for's NULL: reads find nothing
    cdef bint crowded                       # upstream_for's NULL: OVERLOADED, and a client's own pipeline waits
    cdef uint32_t placement                 # counts changes of where keys are
    cdef uint64_t lag_most                  # us: a loop that is later than this says nothing about nodes
    cdef uint64_t lagged                    # when it last was: what was asked before may look slow for our own fault
    cdef uint64_t seen                      # when the last tick began
    cdef uint64_t fence_ends
    cdef uint32_t losses                    # counts queues that were gone through
    cdef int retries
    cdef double retry_share                 # tokens a request brings
    cdef double retry_tokens
    cdef uint64_t slow_call                 # us
    cdef uint64_t attempt_timeout           # us
    cdef size_t remember                    # bytes of keys, a shard
    cdef dict numbers                       # (shard, address) -> node number
    cdef dict written                       # node number -> keys written elsewhere
    cdef dict written_bytes                 # node number -> their bytes; -1: too many, forgotten
    cdef set databases                      # those that clients have used
    cdef dict ghosts                        # address -> connections there that were lost with requests on them: losses.ghost
    cdef dict killed                        # number of an upstream -> those that its greeting kills
    cdef Stale *stale                       # NULL: stale_while_down is not set
    cdef uint64_t *stamps                   # of writes, shared by all workers' stores; NULL: this is the only one
    cdef tuple stale_terms                  # what it was made for
    cdef Scripts *script_store
    cdef list taught                        # scripts that EVAL has brought, for the other workers; None: there are none
    cdef size_t taught_bytes
    cdef bint down                          # upstream_for's NULL: the shard is down
    cdef object misses                      # core/misses.reply
    cdef object raised                      # core/raising.raised
    cdef Request again                      # a request that is sent again
    cdef Ring ring
    cdef CommandTable table
    cdef object users                       # core/acl.Users
    cdef dict permits                       # user name -> Permit, and None -> of who has not logged in
    cdef dict logins_of                     # user name -> clients that have logged in as it
    cdef void *newcomer                     # the permit of a client that has just come
    cdef void *stranger                     # the permit of who must log in first
    cdef bint guarded                       # who does not log in may do nothing
    cdef uint32_t *dirty_clients            # indices; a client is in a list once (its flag)
    cdef uint32_t dirty_client_count
    cdef uint32_t *resuming
    cdef uint32_t resuming_count
    cdef uint32_t *dead
    cdef uint32_t dead_count
    cdef char *scratch
    cdef char *cipher                       # scratch: what is read of an encrypted connection
    cdef Request request
    cdef Budget budget
    cdef uint32_t eff_requests              # this tick's budgets: smaller when memory is short
    cdef size_t eff_soft
    cdef size_t eff_input                   # input of one client that is kept while it does not read its replies
    cdef uint64_t timeout                   # us; of the pool, as are the next five
    cdef uint64_t[3] allowed                # a read, a write, a script: until it is due
    cdef uint64_t longest                   # of these
    cdef uint64_t patience                  # a part of the shortest: a queue that stands for so long is late
    cdef uint64_t connect_timeout
    cdef uint64_t reset_after
    cdef int connections
    cdef int keepalive                      # seconds; 0: none
    cdef bint partial_nil
    cdef uint64_t next_id
    cdef uint64_t random_state
    cdef uint64_t *count                    # counters; then the histograms
    cdef object topology
    cdef dict listeners                     # descriptor -> Entrance
    cdef dict opening                       # client id -> Opening, the oldest first
    cdef dict announced                     # client id -> its addresses by a PROXY header
    cdef object tls                         # ssl.SSLContext for clients; None: no certificate
    cdef bint names_users                   # the name in a client's certificate is who it is
    cdef dict secured                       # node number -> (ssl.SSLContext, its name)
    cdef uint32_t handshakes                # openings at once
    cdef uint64_t handshake_timeout         # us
    cdef int turns                          # of handshakes that are left in this tick
    cdef list paused_listeners              # out of the epoll set until the next cron
    cdef int spare_fd
    cdef object dispatch
    cdef object on_event
    cdef dict origins                       # with a limit for each: address -> Origin *
    cdef dict meta                          # client id -> what few clients have: names
    cdef dict greetings                     # node number -> (for RESP2, for RESP3): (bytes, replies)
    cdef char text[TEXT]                    # the error line that was made last
    cdef int text_size
    cdef uint16_t *owners                   # scratch of a fan-out: node of each key
    cdef uint32_t *shares                   # keys of each node; then where each node's keys end in `positions`
    cdef int share_room
    cdef int *positions                     # scratch: where the keys are
    cdef int key_room                       # of owners and positions

    cdef void event(self, str name, dict fields)
    cdef void wake(self) noexcept
    cdef uint64_t random(self) noexcept nogil

    # Here, so that no module calls them through a pointer
    cdef inline Client *client_at(self, uint32_t index, uint32_t generation) noexcept nogil:
        cdef Client *c
        if index >= self.client_room:
            return NULL
        c = self.client_list[index]
        if c == NULL or c.generation != generation or c.dead:
            return NULL
        return c

    cdef inline void mark_dirty(self, Client *c) noexcept nogil:
        if not c.dirty:
            c.dirty = True
            self.dirty_clients[self.dirty_client_count] = c.index
            self.dirty_client_count += 1

    cdef inline void mark_resuming(self, Client *c) noexcept nogil:
        if not c.resuming:
            c.resuming = True
            self.resuming[self.resuming_count] = c.index
            self.resuming_count += 1

    cdef inline void mark_upstream(self, Upstream *u) noexcept nogil:
        if not u.dirty:
            u.dirty = True
            self.dirty_upstreams[self.dirty_upstream_count] = u.index
            self.dirty_upstream_count += 1

cdef uint64_t monotonic_us() noexcept nogil
cdef int64_t wall_us() noexcept nogil

"""What the engine counts: one table, from which `PROXY INFO`, metrics and their documentation are made.

The counters are C integers in one page, which may be shared memory that a supervisor reads:
COUNTERS words, then a latency histogram of reads and one of writes, BUCKETS words each.
"""

TABLE = (
    ("clients_accepted", "counter", "client connections accepted"),
    ("clients_refused", "counter", "connections refused: too many clients, protected mode, or `allow`"),
    ("clients_closed", "counter", "client connections that ended"),
    ("clients_killed", "counter", "clients that were closed for a reason that is logged"),
    ("commands", "counter", "commands read from clients"),
    ("forwarded", "counter", "commands that went to one shard untouched"),
    ("fanned_out", "counter", "commands that were split over several shards"),
    ("answered_here", "counter", "commands that a handler answered"),
    ("refused", "counter", "commands answered with an error before they reached a node"),
    ("denied", "counter", "commands that a client's user may not run"),
    ("failed_logins", "counter", "logins with a wrong user or password"),
    ("transactions", "counter", "MULTI ... EXEC runs sent to a node"),
    ("protocol_errors", "counter", "clients that sent something that is not RESP"),
    ("error_replies", "counter", "error replies that nodes sent"),
    ("shard_down", "counter", "commands answered SHARDDOWN"),
    ("timeouts", "counter", "requests that passed their deadline"),
    ("late_replies", "counter", "replies that came after their deadline and were thrown away"),
    ("unknown_outcomes", "counter", "requests that were on an upstream when it was lost"),
    ("retries", "counter", "requests sent again"),
    ("retry_budget_empty", "counter", "requests not sent again because retry_budget was used up"),
    ("held", "counter", "requests that waited for a verdict on their node"),
    ("rehashed", "counter", "requests sent to a stand-in"),
    ("misses", "counter", "reads answered as a miss because their shard was down"),
    ("overloaded", "counter", "commands answered OVERLOADED"),
    ("remembered", "counter", "keys remembered because they were written on a stand-in"),
    ("stale_served", "counter", "reads answered with a value kept from before their shard was down"),
    ("scripts_sent", "counter", "scripts that a node was sent because an EVALSHA came that it might not know"),
    ("upstream_connects", "counter", "upstream connections made"),
    ("upstream_losses", "counter", "upstream connections lost"),
    ("upstream_resets", "counter", "upstreams reset because they made no progress or broke the protocol"),
    ("pushes_dropped", "counter", "RESP3 pushes that nobody had asked for"),
    ("client_bytes_in", "counter", "bytes read from clients"),
    ("client_bytes_out", "counter", "bytes written to clients"),
    ("upstream_bytes_in", "counter", "bytes read from nodes"),
    ("upstream_bytes_out", "counter", "bytes written to nodes"),
    ("stalls", "counter", "times a client was not read for a while because of its budget"),
    ("ticks", "counter", "turns of the engine"),
    ("accept_failures", "counter", "accepts that failed for want of descriptors or memory"),
    ("tls_handshakes", "counter", "TLS handshakes with clients that succeeded"),
    ("tls_failures", "counter", "TLS handshakes with clients that failed, plaintext on a TLS port among them"),
    ("bad_headers", "counter", "clients whose PROXY header was none, or not in time"),
    ("clients", "gauge", "client connections now"),
    ("buffer_bytes", "gauge", "bytes in buffers now"),
    ("retries_left", "gauge", "retries that retry_budget allows now"),
    ("script_bytes", "gauge", "bytes of scripts that are kept"),
    ("opening", "gauge", "clients whose PROXY header or TLS handshake is not done"),
)

HISTOGRAMS = ("read", "write")
PAGE_BYTES = 8 * (COUNTERS + 2 * BUCKETS)
BUCKET_COUNT = BUCKETS


def bucket(us: int) -> int:
    return bucket_of(us)


def bucket_start(b: int) -> int:
    """The smallest latency, in microseconds, that falls into bucket b."""
    return b if b < 4 else (4 + b % 4) << (b // 4 - 1)

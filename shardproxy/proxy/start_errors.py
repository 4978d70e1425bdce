"""Why shardproxy does not start, or not take over, in words that say what to do. Pure; never a secret."""


def port_in_use(address: str, option: str) -> str:
    return (
        f"cannot listen on {address}: another program does. Stop it (`ss -ltnp` names it), or listen "
        f"elsewhere: {option} in shardproxy.toml, port 0 for any free one"
    )


def socket_in_use(address: str) -> str:
    return f"cannot listen on {address}: another program does. Stop it, or give another path"


def not_a_socket(address: str) -> str:
    return f"cannot listen on {address}: that file is not a socket. Remove it, or give another path"


def cannot_listen(address: str, reason: str) -> str:
    return f"cannot listen on {address}: {reason}"


def not_permitted(address: str) -> str:
    return (
        f"cannot listen on {address}: permission denied. Ports below 1024 are root's, or of who has "
        "CAP_NET_BIND_SERVICE; a unix socket needs a directory that may be written"
    )


def nobody_to_take_over(address: str) -> str:
    return (
        f"--takeover: no running shardproxy answers for {address}, the first address of `listen`. "
        "Start without --takeover, or check that it runs, as this user, with the same first address"
    )


def no_fixed_address(address: str) -> str:
    return f"--takeover: {address}, the first of `listen`, has no fixed port to find the running one by"


CLOSED = "it closed the connection; is another takeover under way?"


def takeover_failed(reason: str) -> str:
    return f"--takeover: the running shardproxy gave no sockets: {reason}. It goes on as before"


def not_state(path: str) -> str:
    return (
        f"{path}: not a state file of shardproxy, so it is neither used nor written over; "
        "remove it, or name another in `state`"
    )


def newer_state(path: str, by: str) -> str:
    return (
        f"{path}: written by a newer shardproxy ({by}), so it is neither used nor written over; "
        "remove it, or name another in `state`"
    )


def worker_gave_up(slot: int, how: str) -> str:
    return f"worker {slot} ended before it was ready ({how}); the log above says why"

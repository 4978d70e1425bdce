"""Who is connected to a memcached: its `stats conns`, read. Pure.

    STAT 16:addr tcp:127.0.0.1:51004
    STAT 16:listen_addr tcp:127.0.0.1:11211
    STAT 16:state conn_parse_cmd
    STAT 16:secs_since_last_cmd 0

One that is not in it has been read to its end, and closed.
"""

import re
from collections.abc import Mapping

REQUEST = b"stats conns\r\n"
_CONNECTION = re.compile(
    rb"^STAT \d+:addr tcp6?:(\S+)\r\n(?:STAT \d+:listen_addr \S+\r\n)?STAT \d+:state (\S+)\r\n", re.MULTILINE
)


def connections(listing: bytes) -> dict[str, str]:
    """Address, as "127.0.0.1:51004" or "[::1]:51004", → state; of those that come over TCP."""
    return {
        address.decode(errors="replace"): state.decode(errors="replace")
        for address, state in _CONNECTION.findall(listing)
        if state != b"conn_listening"
    }


def asker(there: Mapping[str, str], likely: str) -> str:
    """The connection that asked for it. likely: what it has here, which a network between may change.

    "": that cannot be told, as another connection was served at the same moment.
    """
    if likely in there:
        return likely
    served = [address for address, state in there.items() if state == "conn_parse_cmd"]
    return served[0] if len(served) == 1 else ""

"""Where sessions must not be kept, and why: pure functions from what nodes and pools say of themselves.

A session that vanishes is a user logged out; one that comes back is a user logged in who had logged out.
"""

from collections.abc import Iterator, Mapping
from typing import Any


def faults_of_node(info: Mapping[str, Any]) -> Iterator[str]:
    """info: fields of INFO."""
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys-"):
        yield (
            f"maxmemory-policy is {policy}: a full node removes live sessions and users' epochs; "
            "set noeviction"
        )
    if info.get("role") == "slave":
        yield "the node is a replica: it serves stale sessions, also those that were ended"


def warnings_of_node(info: Mapping[str, Any]) -> Iterator[str]:
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("volatile-"):
        yield f"maxmemory-policy is {policy}: a full node logs users out; noeviction refuses new ones instead"


def faults_of_pool(pool: Mapping[str, Any]) -> Iterator[str]:
    """pool: as PROXY TOPOLOGY has it."""
    name = pool["name"]
    if pool.get("kind") != "durable":
        yield f'pool {name} is kind = "{pool.get("kind")}": its content may be lost; sessions need "durable"'
    if pool.get("on_shard_down") == "rehash":
        yield f'pool {name} has on_shard_down = "rehash": sessions would come back from a shard that was down'
    if pool.get("on_shard_down") == "miss":
        yield f'pool {name} has on_shard_down = "miss": a shard that is down would log its users out'
    if pool.get("hash_tag") != "{}":
        yield f'pool {name} has hash_tag = "{pool.get("hash_tag")}": users and sessions share shards by {{}}'
    for shard in pool.get("shards", ()):
        if shard.get("protocol", "redis") != "redis":
            yield f"shard {shard['name']} of pool {name} is {shard['protocol']}: it runs no scripts"


def info_fields(reply: Any) -> dict[str, Any]:
    """INFO as a dict, whatever a client has made of it."""
    if isinstance(reply, Mapping):
        return dict(reply)
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

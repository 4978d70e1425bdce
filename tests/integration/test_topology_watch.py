"""PROXY TOPOLOGY WATCH through a running proxy: every worker tells, whatever the change is; who may ask."""

import json
import os
import socket
from typing import Any

import pytest
from servers import ProxyProcess, Raw, RedisNode, logged_in, pack, shards_of, toml, until

CACHE = 'kind = "cache"\non_shard_down = "rehash"\non_return = "invalidate"\nhealth.interval = "200ms"'


def topology(raw: Raw, *args: str | int) -> Any:
    return json.loads(raw.value("PROXY", "TOPOLOGY", *args))


def states(found: Any) -> dict[str, str]:
    return {shard["name"]: shard["node"]["state"] for shard in found["pools"][0]["shards"]}


def followed(raw: Raw, found: Any, what: Any) -> Any:
    """Asks again and again from that snapshot on, until what(snapshot); each a newer one."""
    while not what(found):
        newer = topology(raw, "WATCH", found["generation"], 20_000)
        assert newer["generation"] > found["generation"], "waited in vain"
        found = newer
    return found


def all_up(found: Any) -> bool:
    return set(states(found).values()) == {"up"}


@pytest.mark.parametrize("workers", [1, 2])
def test_each_worker_tells_of_a_node_that_goes_out_and_of_a_reload(
    nodes3: list[RedisNode], workers: int
) -> None:
    with RedisNode() as mortal:
        shards = {**shards_of(nodes3[:2]), "m": mortal.address}
        with ProxyProcess(toml(shards, top=f"workers = {workers}", pool=CACHE)) as process:
            raws = [process.raw()]
            while len({int(raw.value("CLIENT", "ID")) >> 32 for raw in raws}) < workers:
                raws.append(process.raw())
            found = [followed(raw, topology(raw), all_up) for raw in raws]
            mortal.kill()
            found = [
                followed(raw, each, lambda it: states(it)["m"] == "out")
                for raw, each in zip(raws, found, strict=True)
            ]
            assert all(it["pools"][0]["shards"][2]["node"]["reason"] for it in found)
            # those that wait already hear of a reload, the one who asks for it on another connection
            for raw, each in zip(raws, found, strict=True):
                raw.send(pack("PROXY", "TOPOLOGY", "WATCH", each["generation"], 20_000))
            beside = process.config_path.with_suffix(".new")
            more = {**shards, "c": nodes3[2].address}
            beside.write_text(toml(more, top=f"workers = {workers}", pool=CACHE))
            os.replace(beside, process.config_path)
            with process.raw() as operator:
                operator.value("PROXY", "RELOAD")
            for raw in raws:
                it = json.loads(raw.frame().partition(b"\r\n")[2])
                it = followed(raw, it, lambda it: len(it["pools"][0]["shards"]) == 4)
                assert it["pools"][0]["fingerprint"] != found[0]["pools"][0]["fingerprint"]
                raw.close()


def test_announced_addresses_logins_and_the_end_of_waiting(nodes3: list[RedisNode]) -> None:
    config = toml(
        {},
        pool="health.interval = '1h'",
        top='users.app = { password = "secret-of-app", acl = "on ~* +@read" }\n'
        'users.web = { password = "secret-of-web", acl = "on +proxy|topology" }\n'
        'users.default = "reset on >secret-of-all ~* &* +@all"',
    )
    config += f'a = {{ primary = "redis://{nodes3[0].address}", announce = "rediss://a.example:7000" }}\n'
    config += f'b = "redis://{nodes3[1].address}"\n'
    process = ProxyProcess(config)
    process.config_path.chmod(0o600)
    with process:
        with process.raw() as raw:
            assert raw.ask("PROXY", "TOPOLOGY").startswith(b"-NOAUTH")
            assert raw.ask("PROXY", "TOPOLOGY", "WATCH").startswith(b"-NOAUTH")
        with logged_in(process, "app", "secret-of-app") as raw:
            assert raw.ask("PROXY", "TOPOLOGY").startswith(b"-NOPERM")
        with logged_in(process, "web", "secret-of-web") as raw, process.raw() as admin:
            assert admin.ask("AUTH", "secret-of-all") == b"+OK\r\n"
            found = until(lambda: all_up(it := topology(raw)) and it, "nodes to be up")
            shards = found["pools"][0]["shards"]
            assert (shards[0]["node"]["address"], shards[0]["tls"]) == ("a.example:7000", True)
            assert (shards[1]["node"]["address"], shards[1]["tls"]) == (nodes3[1].address, False)
            assert "secret" not in json.dumps(found)
            while (newer := topology(raw, "WATCH", found["generation"], 500)) != found:
                found = newer  # versions may still come in
            # what waits is blocked, as Redis calls it, and ends as such
            raw.send(pack("PROXY", "TOPOLOGY", "WATCH"))
            listed = until(
                lambda: [it for it in admin.value("CLIENT", "LIST").splitlines() if "user=web" in it],
                "the watcher to be listed",
            )
            number = int(listed[0].split()[0][3:])
            until(lambda: admin.value("CLIENT", "UNBLOCK", number, "ERROR") == 1, "it to wait")
            assert raw.frame().startswith(b"-UNBLOCKED")
            # a drain answers it, and does not wait for it
            raw.send(pack("PROXY", "TOPOLOGY", "WATCH", found["generation"], 300_000))
            until(lambda: "blocked_clients:1" in admin.value("INFO", "clients"), "it to wait")
            raw.socket.shutdown(socket.SHUT_WR)
            until(lambda: "blocked_clients:0" in admin.value("INFO", "clients"), "it to be gone")
        with logged_in(process, "web", "secret-of-web") as raw:
            raw.send(pack("PROXY", "TOPOLOGY", "WATCH", found["generation"], 300_000))
            with process.raw() as admin:
                assert admin.ask("AUTH", "secret-of-all") == b"+OK\r\n"
                until(lambda: "blocked_clients:1" in admin.value("INFO", "clients"), "it to wait")
            process.process.terminate()  # type: ignore[union-attr]
            assert json.loads(raw.frame().partition(b"\r\n")[2])["pools"]
            assert process.wait() == 0

"""A Node program and a Python one share a session: the library here, SESSION.* of the proxy there."""

import json
import os
import subprocess
from pathlib import Path

import redis

from shardproxy.sessions import SessionStore
from tests.ecosystem.install import HERE, NODE_MODULES
from tests.servers import ProxyProcess, redis_nodes, shards_of, toml

SECRET = "a secret of both programs"


def test_node_and_python_share_a_session(tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text(SECRET)
    top = (
        '[users]\ndefault = "on nopass ~* &* +@all +@session"\n'
        f'[sessions]\npool = "main"\nsecrets_file = "{tmp_path / "secrets"}"'
    )
    with redis_nodes(3) as nodes, ProxyProcess(toml(shards_of(nodes), top=top)) as proxy:
        store = SessionStore(redis.Redis(port=proxy.port), [SECRET])
        session = store.new()
        session["cart"], session["visits"] = ["book", {"pages": 7}], 1
        session.login("anna")
        assert session.cookie is not None
        done = subprocess.run(
            ["node", str(HERE / "clients" / "session.cjs"), str(proxy.port), session.cookie],
            env=os.environ | {"NODE_PATH": str(NODE_MODULES)},
            capture_output=True,
            text=True,
            timeout=45,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout) == session["cart"]
        session = store.load(session.cookie)
        assert dict(session) == {
            "cart": ["book", {"pages": 7}],
            "visits": 2,
            "from_node": {"cart": ["book", {"pages": 7}]},
        }

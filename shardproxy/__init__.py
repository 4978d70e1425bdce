"""Many cache servers behind one door: a fast RESP proxy over a consistent hash ring of Redis nodes.

    import shardproxy
    async with shardproxy.Proxy(shardproxy.load("shardproxy.toml")) as proxy:
        await proxy.serve_forever()

What is below is imported when it is first used: the bare import stays quick.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardproxy.client.aio import AsyncShardedRedis as AsyncShardedRedis
    from shardproxy.client.errors import PartialError as PartialError
    from shardproxy.client.sync import ShardedRedis as ShardedRedis
    from shardproxy.config import Config as Config
    from shardproxy.config import ConfigError as ConfigError
    from shardproxy.config import PoolConfig as PoolConfig
    from shardproxy.config import ShardConfig as ShardConfig
    from shardproxy.config import load as load
    from shardproxy.proxy.listeners import StartError as StartError
    from shardproxy.proxy.server import Proxy as Proxy

__version__ = "0.1.0"
__all__ = ["AsyncShardedRedis", "Config", "ConfigError", "PartialError", "PoolConfig", "Proxy", "ShardConfig",
           "ShardedRedis", "StartError", "__version__", "load"]  # fmt: skip

_HOMES = {
    "AsyncShardedRedis": "shardproxy.client.aio",
    "Config": "shardproxy.config",
    "ConfigError": "shardproxy.config",
    "PartialError": "shardproxy.client.errors",
    "PoolConfig": "shardproxy.config",
    "Proxy": "shardproxy.proxy.server",
    "ShardConfig": "shardproxy.config",
    "ShardedRedis": "shardproxy.client.sync",
    "StartError": "shardproxy.proxy.listeners",
    "load": "shardproxy.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if not _HOMES[name].startswith("shardproxy.proxy."):
            raise
        wanted = "Linux" if str(error.name).startswith("shardproxy.") else "pip install 'shardproxy[proxy]'"
        raise ImportError(f"shardproxy.{name}, a part of the proxy, needs {wanted} ({error})") from error
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

"""The records, printed: a sample file, what a file comes to, the reference page, the JSON schema."""

from typing import Any

import msgspec

from shardproxy.config import tables
from shardproxy.config.limits import Limits
from shardproxy.config.pools import HealthConfig, PoolConfig, ShardConfig, TimeoutsConfig
from shardproxy.config.records import Config, Log
from shardproxy.config.sessions import ClassConfig, SessionsConfig
from shardproxy.config.tls import KeyConfig, NodeTlsConfig, TlsConfig
from shardproxy.config.users import UserConfig

SAMPLE = Config(
    pool={
        "main": PoolConfig(
            shards={
                name: ShardConfig(primary=f"redis://127.0.0.1:700{port}")
                for port, name in enumerate("abc", 1)
            }
        )
    }
)


def default_text() -> str:
    """A complete commented file: every option with its help and default, and three shards."""
    return (
        "# shardproxy.toml: every option, with its default; behind a #, an example. Keep what you change.\n\n"
        + tables.toml(SAMPLE, commented=True)
    )


def effective_text(config: Config) -> str:
    """What a file comes to, with every default filled in; passwords left out."""
    return tables.toml(config)


def reference() -> str:
    """Every option, as Markdown tables."""
    return tables.markdown(Config)


def schema() -> dict[str, Any]:
    """The JSON schema of shardproxy.toml, for editors."""
    made: dict[str, Any] = msgspec.json.schema(Config, schema_hook=lambda _: {"type": "string"})
    tls_records = (TlsConfig, KeyConfig, NodeTlsConfig)
    pool_records = (PoolConfig, TimeoutsConfig, HealthConfig, ShardConfig)
    for record in (Config, Log, Limits, *tls_records, *pool_records, UserConfig, SessionsConfig, ClassConfig):
        for key, option in tables.options(record).items():
            if option.help:
                made["$defs"][record.__name__]["properties"][key]["description"] = option.help
    shards = made["$defs"]["PoolConfig"]["properties"]["shards"]
    shards["additionalProperties"] = {"anyOf": [{"type": "string"}, shards["additionalProperties"]]}
    users = made["$defs"]["Config"]["properties"]["users"]
    users["additionalProperties"] = {"anyOf": [{"type": "string"}, users["additionalProperties"]]}
    return made

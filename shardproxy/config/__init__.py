"""shardproxy.toml ↔ typed records: `load`, and what it gives. What is only printed is in `pages`."""

from shardproxy.config.limits import Limits
from shardproxy.config.loading import Source, load
from shardproxy.config.pools import HealthConfig, PoolConfig, ShardConfig, TimeoutsConfig
from shardproxy.config.records import Config, Log
from shardproxy.config.secrets import Credentials, read_session_secrets, read_users
from shardproxy.config.sessions import SessionsConfig
from shardproxy.config.tables import ConfigError, Mistake
from shardproxy.config.text import Secret
from shardproxy.config.tls import KeyConfig, NodeTlsConfig, TlsConfig
from shardproxy.config.users import UserConfig

__all__ = [
    "Config", "ConfigError", "Credentials", "HealthConfig", "KeyConfig", "Limits", "Log", "Mistake",
    "NodeTlsConfig", "PoolConfig", "Secret", "SessionsConfig", "ShardConfig", "Source", "TimeoutsConfig",
    "TlsConfig", "UserConfig", "load", "read_session_secrets", "read_users",
]  # fmt: skip

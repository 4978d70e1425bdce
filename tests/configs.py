"""Texts of configurations for tests: the least that one has, and what is wrong with one."""

import typing

import pytest

from shardproxy.config import ConfigError, load

SHARD = '[pool.main.shards]\na = "redis://127.0.0.1:7001"\n'


def mistakes(text: str, **options: typing.Any) -> list[str]:
    """Each as "KEY PATH: found ...; expected ..."."""
    with pytest.raises(ConfigError) as caught:
        load(text.encode(), **options)
    return [str(each).removeprefix("configuration: ") for each in caught.value.mistakes]

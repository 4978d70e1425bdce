from collections.abc import Sequence

from shardproxy.core.acl import User
from shardproxy.core.commands import CommandTable

VERDICTS: tuple[str, ...]

class Permit:
    """What one user may run, against one command table."""

    user: User | None
    everything: bool
    def __init__(self, user: User | None, table: CommandTable, trust_scripts: bool = False) -> None:
        """user: None for who has not logged in, and may do no more than that."""

    def examine(self, args: Sequence[bytes]) -> tuple[str, int]:
        """One of VERDICTS, and which argument was denied; ValueError for a command that is not in the table.

        The arity is the caller's to check.
        """

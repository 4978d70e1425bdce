def greeting(proto: int, username: str | None, password: str | None) -> tuple[bytes, int]:
    """What a new upstream says first, and how many replies that has."""

KEY_HASHES: tuple[str, ...]
"""The names that `hash_key` knows: twemproxy's twelve key hashes, and "xxh64" last."""

def xxh64(data: bytes) -> int:
    """XXH64 with seed 0: 64 bits. Equal to `xxhash.xxh64_intdigest`, https://xxhash.com."""

def hash_key(name: str, data: bytes) -> int:
    """The hash of that name: 64 bits for "xxh64", else the 32 bits that twemproxy uses.

    Raises ValueError when there is no hash of that name.
    """

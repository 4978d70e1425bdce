from collections.abc import Collection, Sequence

DISTRIBUTIONS: tuple[str, ...]
MAX_SHARDS: int
MAX_POINTS: int
MAX_WEIGHT: int

class Ring:
    names: tuple[str, ...]
    weights: tuple[int, ...]
    distribution: str
    virtual_nodes: int
    hash: str
    hash_tag: str
    fingerprint: str
    def __new__(
        cls,
        shards: Sequence[tuple[str, int]],
        distribution: str = "ring",
        virtual_nodes: int = 160,
        hash: str | None = None,
        hash_tag: str | None = None,
    ) -> Ring: ...
    def locate(self, key: bytes, out: Collection[int] = ()) -> int | None: ...
    def hash_of(self, key: bytes) -> int: ...
    def points(self) -> list[tuple[int, int]]: ...

def twemproxy_name(alias: str | None, host: str, port: int) -> str: ...

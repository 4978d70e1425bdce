"""The store of last values against a model: with colliding hashes and without, with much room and little."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from servers import pack

from shardproxy.core.buffers import total_bytes
from shardproxy.dataplane.stale import StaleStore

LIMIT, SMALL = 1 << 20, 12_000
KEYS = [b"", b"a", b"b", b"\r\n", b"k" * 300, *(b"key%d" % number for number in range(12))]

keys = st.sampled_from(KEYS)
protos = st.sampled_from([2, 3])
requests = st.one_of(
    st.tuples(st.sampled_from([b"GET", b"get", b"HGETALL"]), keys),
    st.tuples(st.sampled_from([b"HGET", b"hget"]), keys, st.sampled_from([b"f", b"g", b""])),
    st.tuples(st.just(b"LRANGE"), keys, st.just(b"0"), st.just(b"-1")),
)
frames = st.one_of(
    st.sampled_from([b"$-1\r\n", b"_\r\n", b":1\r\n", b"*0\r\n"]),
    st.integers(0, 3_000).map(lambda size: b"$%d\r\n%b\r\n" % (size, b"v" * size)),
)


class Model(RuleBasedStateMachine):
    """A dictionary; the store may know less, when it is small or hashes collide, and never anything else."""

    store: StaleStore

    @initialize(bits=st.sampled_from([0, 1, 4, 64]), small=st.booleans(), settle=st.integers(0, 4))
    def begin(self, bits: int, small: bool, settle: int) -> None:
        self.before = total_bytes()
        self.exact = bits == 64 and not small
        self.limit, self.settle, self.max_age, self.now = SMALL if small else LIMIT, settle, 40, 100
        self.store = StaleStore(self.limit, self.max_age, settle, bits)
        self.kept: dict[tuple[int, tuple[bytes, ...]], tuple[int, bytes]] = {}
        self.written: dict[bytes, int] = {}
        self.cleared = -100

    @rule(request=requests, proto=protos, frame=frames, ago=st.integers(0, 6))
    def put(self, request: tuple[bytes, ...], proto: int, frame: bytes, ago: int) -> None:
        sent = self.now - ago
        self.store.put(pack(*request), proto, frame, sent, self.now)
        what = (proto, (request[0].lower(), *request[1:]))
        self.kept.pop(what, None)
        if sent > max(self.written.get(request[1], -100), self.cleared) + self.settle:
            self.kept[what] = (self.now, frame)

    @rule(request=requests, proto=protos)
    def get(self, request: tuple[bytes, ...], proto: int) -> None:
        found = self.store.get(pack(*request), proto, self.now)
        at, frame = self.kept.get((proto, (request[0].lower(), *request[1:])), (0, None))
        if at + self.max_age < self.now:
            frame = None
        assert found == frame or (found is None and not self.exact)

    @rule(key=keys)
    def write(self, key: bytes) -> None:
        self.store.drop(key, self.now)
        self.written[key] = self.now
        self.kept = {what: value for what, value in self.kept.items() if what[1][1] != key}

    @rule()
    def clear(self) -> None:
        self.store.clear(self.now)
        self.cleared = self.now
        self.kept.clear()
        assert len(self.store) == 0

    @rule(later=st.integers(0, 20))
    def wait(self, later: int) -> None:
        self.now += later

    @rule()
    def expire(self) -> None:
        self.store.expire(self.now)

    @rule(size=st.integers(0, 4_000))
    def shrink(self, size: int) -> None:
        before = self.store.size
        self.store.shrink(size)
        assert self.store.size <= before - size or len(self.store) == 0
        self.exact = False

    @invariant()
    def its_bytes_are_counted_and_bounded(self) -> None:
        if hasattr(self, "store"):
            assert total_bytes() - self.before == self.store.size <= self.limit
            assert len(self.store) <= len(self.kept)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            del self.store
            assert total_bytes() == self.before


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)

"""The asyncio client's connection, without a socket: whose each reply is, whatever is given up or lost."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import AuthenticationError, ResponseError

from shardproxy.client.aio_connection import Connection, Lost, Many
from shardproxy.client.wire import Coding

OK = b"+OK\r\n"


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True


class Owner:
    def __init__(self) -> None:
        self.answered, self.lates, self.failures, self.ends = 0, 0, list[str](), 0
        self.slow, self.slow_call = 0, 1e3

    def heard(self, count: int, slow: int) -> None:
        self.answered += count
        self.slow += slow

    def late(self) -> None:
        self.lates += 1

    def failed(self, reason: str) -> None:
        self.failures.append(reason)

    def closed(self, connection: Connection) -> None:
        self.ends += 1


async def opened(greeting: bytes = b"", **options: Any) -> tuple[Connection, Transport, Owner]:
    made = Connection(asyncio.get_running_loop(), Coding().reader(), owner := Owner(), **options)
    transport = Transport()

    async def dial(factory: Any) -> None:
        factory().connection_made(transport)

    opening = asyncio.ensure_future(made.open(dial, [greeting] if greeting else [], lambda replies: None))
    await turn()
    if greeting:
        assert transport.written == [greeting]
        made.data_received(OK)
    await opening
    transport.written.clear()
    return made, transport, owner


async def turn(times: int = 2) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_what_is_asked_in_one_turn_is_one_write_and_replies_come_in_order() -> None:
    connection, transport, owner = await opened(b"HELLO")
    waiting = [connection.ask(b"%d;" % number) for number in range(5)]
    many = connection.ask_many(b"a;b;", 2)
    await turn()
    assert transport.written == [b"0;1;2;3;4;a;b;"]
    data = b"".join(b":%d\r\n" % number for number in range(5)) + b"-ERR no\r\n+b\r\n"
    for byte in data:
        connection.data_received(bytes([byte]))
    assert [await each for each in waiting] == [0, 1, 2, 3, 4]
    failed, value = await many
    assert isinstance(failed, ResponseError) and value == b"b"
    assert owner.answered == 6
    assert not connection.owed


async def test_nothing_is_written_before_the_greeting_is_answered() -> None:
    loop = asyncio.get_running_loop()
    connection, transport = Connection(loop, Coding().reader(), Owner()), Transport()

    async def dial(factory: Any) -> None:
        factory().connection_made(transport)

    waiting = connection.ask(b"GET")
    opening = asyncio.ensure_future(connection.open(dial, [b"HELLO", b"SELECT"], lambda replies: None))
    await turn(4)
    assert transport.written == [b"HELLOSELECT"]
    connection.data_received(OK + b"+OK")
    await turn(4)
    assert transport.written == [b"HELLOSELECT"]
    connection.data_received(b"\r\n")
    await opening
    assert transport.written == [b"HELLOSELECT", b"GET"]
    connection.data_received(b"+v\r\n")
    assert await waiting == b"v"


async def test_a_greeting_that_is_refused_ends_it_and_nothing_was_sent() -> None:
    loop = asyncio.get_running_loop()
    connection, transport = Connection(loop, Coding().reader(), Owner()), Transport()

    async def dial(factory: Any) -> None:
        factory().connection_made(transport)

    def check(replies: list[Any]) -> None:
        raise replies[0]

    waiting = connection.ask(b"GET")
    opening = asyncio.ensure_future(connection.open(dial, [b"HELLO"], check))
    await turn()
    connection.data_received(b"-WRONGPASS no\r\n")
    with pytest.raises(AuthenticationError):
        await opening
    lost = await waiting
    assert isinstance(lost, Lost) and not lost.sent and isinstance(lost.error, AuthenticationError)
    assert transport.aborted and transport.written == [b"HELLO"]
    after = await connection.ask(b"GET")
    assert isinstance(after, Lost) and not after.sent


def given_up() -> Iterator[set[int]]:
    """Every set of five calls."""
    for bits in range(32):
        yield {number for number in range(5) if bits >> number & 1}


@pytest.mark.parametrize("written", [False, True])
async def test_who_is_cancelled_leaves_its_place_and_nobody_gets_its_reply(written: bool) -> None:
    for gone in given_up():
        connection, transport, _ = await opened()

        async def call(number: int, connection: Connection = connection) -> Any:
            return await connection.ask(b"%d;" % number)

        tasks = [asyncio.ensure_future(call(number)) for number in range(5)]
        await turn(2 if written else 1)
        for number in gone:
            tasks[number].cancel()
        await turn()
        assert transport.written == [b"0;1;2;3;4;"]
        connection.data_received(b":0\r\n:1\r\n:2\r\n:3\r\n:4\r\n")
        late = connection.ask(b"5;")
        await turn()
        connection.data_received(b":5\r\n")
        assert await late == 5
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, result in enumerate(results):
            if number in gone:
                assert isinstance(result, asyncio.CancelledError)
            else:
                assert result == number


async def test_a_late_reply_is_dropped_and_the_next_call_gets_its_own() -> None:
    connection, _, owner = await opened(timeout=0.01, patience=60.0)
    first, lasting = connection.ask(b"1;"), connection.ask_many(b"2;", 1, lasting=True)
    lost = await first
    assert isinstance(lost, Lost) and lost.late and lost.sent
    assert not lasting.done()
    assert owner.lates == 1
    connection.timeout = 60.0
    second = connection.ask(b"3;")
    await turn()
    connection.data_received(b"+late\r\n+2\r\n+mine\r\n")
    assert await lasting == [b"2"]
    assert await second == b"mine"
    assert connection.lost is None and owner.failures == []


async def test_one_that_brings_nothing_for_long_is_given_up() -> None:
    connection, transport, owner = await opened(timeout=0.005, patience=0.02)
    found = await connection.ask(b"1;")
    assert isinstance(found, Lost) and found.late
    while connection.lost is None:
        await asyncio.sleep(0.005)
    assert transport.aborted and len(owner.failures) == 1
    waiting = await opened(timeout=None, patience=0.02)
    found = await waiting[0].ask(b"1;")
    assert isinstance(found, Lost) and found.sent and not found.late


async def test_what_was_written_when_it_is_lost_may_have_run_the_rest_not() -> None:
    connection, _, owner = await opened()
    first = connection.ask(b"1;")
    await turn()
    second, third = connection.ask(b"2;"), connection.ask_many(b"3;4;", 2)
    connection.connection_lost(ConnectionResetError(104, "Connection reset by peer"))
    results = [await each for each in (first, second, third)]
    assert [each.sent for each in results] == [True, False, False]
    assert {each.reason for each in results} == {"Connection reset by peer"}
    assert (owner.failures, owner.ends) == (["Connection reset by peer"], 1)
    connection.data_received(b"+1\r\n")
    connection.close("again")
    assert owner.ends == 1


async def test_the_end_of_an_idle_one_is_no_failure() -> None:
    connection, _, owner = await opened()
    connection.eof_received()
    assert connection.lost and owner.failures == [] and owner.ends == 1


@pytest.mark.parametrize("data", [b"+nobody asked\r\n", b"?nonsense\r\n", b"HTTP/1.1 400 Bad Request\r\n"])
async def test_what_nobody_asked_for_and_nonsense_end_it(data: bytes) -> None:
    connection, transport, _ = await opened()
    waiting = connection.ask(b"1;")
    await turn()
    connection.data_received(b":1\r\n" + data)
    connection.data_received(b":2\r\n")
    assert transport.aborted and connection.lost
    assert await waiting == 1


async def test_pushes_take_no_place() -> None:
    pushed: list[Any] = []
    connection, _, _ = await opened(pushed=pushed.append)
    push = b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n"
    one, many = connection.ask(b"1;"), connection.ask_many(b"2;3;", 2)
    await turn()
    connection.data_received(push + b":1\r\n" + push + b":2\r\n" + push + b":3\r\n" + push)
    assert await one == 1
    assert await many == [2, 3]
    assert pushed == [[b"invalidate", [b"k"]]] * 4


async def test_who_writes_more_than_goes_out_waits_and_is_let_go_when_it_ends() -> None:
    connection, _, _ = await opened()
    connection.pause_writing()
    waiting = [asyncio.ensure_future(connection.room()) for _ in range(3)]
    await turn()
    waiting[0].cancel()
    await turn()
    assert not waiting[1].done()
    connection.resume_writing()
    await asyncio.gather(*waiting[1:])
    connection.pause_writing()
    waiting = [asyncio.ensure_future(connection.room())]
    await turn()
    connection.close("over")
    await waiting[0]


async def test_bytes_stay_bytes_where_they_must_not_be_decoded() -> None:
    loop = asyncio.get_running_loop()
    connection = Connection(loop, Coding(decode=True).reader(), Owner())
    connection.connection_made(Transport())
    connection.up = True
    one, raw, other = (
        connection.ask(b"1;"),
        connection.ask_many(b"2;", 1, decode=False),
        connection.ask(b"3;"),
    )
    await turn()
    for byte in b"$2\r\n\xc3\xa4\r\n$2\r\n\xff\xfe\r\n+text\r\n":
        connection.data_received(bytes([byte]))
    assert (await one, await raw, await other) == ("ä", [b"\xff\xfe"], "text")


def test_many_is_done_when_its_waiter_is() -> None:
    loop = asyncio.new_event_loop()
    many = Many(loop.create_future(), 1)
    assert not many.done()
    many.future.cancel()
    assert many.done()
    loop.close()


async def test_a_value_that_cannot_be_decoded_is_its_calls_own_fault() -> None:
    made = Connection(asyncio.get_running_loop(), Coding(decode=True).reader(), Owner())
    transport = Transport()

    async def dial(factory: Any) -> None:
        factory().connection_made(transport)

    await made.open(dial, [], lambda replies: None)
    first, second, third = made.ask(b"a"), made.ask_many(b"bc", 2), made.ask(b"d")
    await turn()
    made.data_received(b"$2\r\n\xff\xfe\r\n+ONE\r\n*2\r\n+x\r\n$1\r\n\xff\r\n+TWO\r\n")
    assert isinstance(await first, UnicodeDecodeError) and await third == "TWO"
    one, bad = await second
    assert one == "ONE" and isinstance(bad, UnicodeDecodeError)
    assert made.lost is None


async def test_a_reader_that_has_lost_its_place_ends_the_connection() -> None:
    made, transport, owner = await opened()
    waiter = made.ask(b"a")
    await turn()
    made.data_received(b"%1\r\n*1\r\n+a\r\n+b\r\n")  # a map whose key cannot be one
    assert isinstance(await waiter, Lost) and transport.aborted and owner.failures == []


async def test_what_is_answered_late_but_in_time_is_slow() -> None:
    connection, _, owner = await opened(timeout=1e3)
    owner.slow_call = 0.001
    slow, pipeline = [connection.ask(b"a"), connection.ask(b"b")], connection.ask_many(b"c;d;", 2)
    async with asyncio.timeout(10):
        while connection._slow < 3:
            await asyncio.sleep(0.001)
    owner.slow_call = 1e3
    quick = connection.ask(b"e")
    await turn()
    assert owner.slow == 0, "they are not answered yet"
    for part in (b"+a", b"\r\n+b\r\n+c\r\n+d\r", b"\n+e\r\n"):
        connection.data_received(part)
    assert [await each for each in (*slow, quick)] == [b"a", b"b", b"e"]
    assert await pipeline == [b"c", b"d"]
    assert (owner.answered, owner.slow) == (4, 2), (
        "a pipeline may take its time, and who asks later is not slow"
    )


async def test_what_has_come_while_the_loop_was_late_is_not_slow() -> None:
    connection, _, owner = await opened(timeout=1e3)
    owner.slow_call = 0.001
    loop, waiter = asyncio.get_running_loop(), connection.ask(b"a")
    await turn()
    (due, _) = connection._soon[0]
    while loop.time() <= due:
        pass  # what holds up the loop
    connection._look()
    await turn(1)
    connection.data_received(b"+a\r\n")
    assert await waiter == b"a" and owner.slow == 0

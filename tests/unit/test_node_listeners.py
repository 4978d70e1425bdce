"""A worker's connection for subscriptions, against an engine that is only told of."""

import asyncio
from types import SimpleNamespace
from typing import Any

from shardproxy.handlers.node_listeners import Listener


class Links:
    """A reactor: the links that it was asked for, and their callbacks."""

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []

    def open_link(self, number: int, **options: Any) -> Any:
        self.opened.append(options)
        return SimpleNamespace(send=lambda request: None, close=lambda: None)


def test_one_that_is_closed_does_not_come_back() -> None:
    """Its node goes out: it is closed in the turn in which its link is lost, and told of that in the next.
    Were it to connect again, each message would come twice when the node is back."""

    async def scene() -> None:
        reactor = Links()
        home: Any = SimpleNamespace(
            server=SimpleNamespace(reactor=reactor), names=({}, {}, {}), now=asyncio.get_running_loop().time
        )
        listener = Listener(home, 0)
        listener.lost("it closed the connection")
        assert listener.retry is not None  # while it is wanted
        listener.connect()
        assert len(reactor.opened) == 2
        listener.close()
        reactor.opened[1]["on_lost"]("it is out")
        assert listener.retry is None or listener.retry.cancelled()
        assert len(reactor.opened) == 2

    asyncio.run(scene())

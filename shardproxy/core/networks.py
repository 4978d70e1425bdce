"""Lists of IP networks, as in `allow`: is an address in one of them?"""

import ipaddress
from collections.abc import Iterable

MAPPED = bytes(10) + b"\xff\xff"  # an IPv4 address written as IPv6 begins so


class Networks:
    """texts: "10.0.0.0/8", "::1" … Raises ValueError for what is neither an address nor a network."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._of_size: dict[int, list[tuple[int, int]]] = {4: [], 16: []}
        for text in texts:
            network = ipaddress.ip_network(text, strict=False)
            size = network.max_prefixlen // 8
            self._of_size[size].append((int(network.network_address), int(network.netmask)))

    def holds(self, address: bytes) -> bool:
        """address: 4 or 16 bytes, in network order; a mapped IPv4 address is its IPv4 address."""
        if len(address) == 16 and address.startswith(MAPPED):
            address = address[12:]
        number = int.from_bytes(address, "big")
        return any(number & mask == network for network, mask in self._of_size.get(len(address), ()))

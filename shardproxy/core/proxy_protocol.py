"""The PROXY protocol, versions 1 and 2: what a load balancer says of a client, before the client's own bytes.

A pure function of what has come so far. Rules: nothing after the header is taken; what is not a header, or
too long to be one, is an error at the first byte that tells; addresses of a kind unknown announce nobody.
"""

import ipaddress
import struct
from typing import NamedTuple

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
BEGIN = b"PROXY "
LONGEST_LINE = 107  # of version 1, by its specification
LONGEST = 4096  # of version 2: addresses, and what else a load balancer likes to tell
LOCAL, PROXIED = 0, 1
SIZES = {1: 4, 2: 16}  # of an address, by its family


class Header(NamedTuple):
    """size: bytes of the header. The rest: who the client is, where it connected; empty: it does not say."""

    size: int
    source: bytes = b""  # 4 or 16 bytes
    source_port: int = 0
    target: bytes = b""
    target_port: int = 0


def parse(data: bytes) -> Header | int:
    """The header, or how many more bytes belong to it at least; 0: all to the end of the line.

    Raises ValueError with what is wrong.
    """
    if not data:
        return 0
    if data.startswith(SIGNATURE[: len(data)]):
        return _binary(data)
    if data.startswith(BEGIN[: len(data)]):
        return _line(data)
    raise ValueError("what it sent first is no PROXY header")


def _line(data: bytes) -> Header | int:
    line, end, _ = data[:LONGEST_LINE].partition(b"\r\n")
    if not end:
        if len(data) >= LONGEST_LINE:
            raise ValueError("its PROXY header has no end")
        if b"\n" in line:
            raise ValueError("its PROXY header is malformed")
        return 0
    size = len(line) + 2
    words = line.decode("ascii", "replace").split(" ")
    if words[1] == "UNKNOWN":
        return Header(size)
    family = {"TCP4": 4, "TCP6": 6}.get(words[1])
    if family is None or len(words) != 6:
        raise ValueError("its PROXY header is malformed")
    try:
        source, target = (ipaddress.ip_address(word) for word in words[2:4])
    except ValueError:
        raise ValueError("the addresses of its PROXY header are malformed") from None
    if source.version != family or target.version != family:
        raise ValueError("the addresses of its PROXY header are of another family")
    return Header(size, source.packed, _port(words[4]), target.packed, _port(words[5]))


def _port(word: str) -> int:
    if not (word.isascii() and word.isdigit()) or len(word) > 5 or int(word) > 65535:
        raise ValueError("a port of its PROXY header is malformed")
    return int(word)


def _binary(data: bytes) -> Header | int:
    if len(data) < 16:
        return 16 - len(data)
    version, family = data[12:14]
    length = int.from_bytes(data[14:16], "big")
    if version >> 4 != 2 or version & 15 not in (LOCAL, PROXIED):
        raise ValueError("its PROXY header is of a version that is not known")
    if length > LONGEST:
        raise ValueError("its PROXY header is too long")
    size = 16 + length
    if len(data) < size:
        return size - len(data)
    if version & 15 == LOCAL or family >> 4 not in SIZES or family & 15 != 1:
        return Header(size)  # the load balancer itself, or a kind of address that has no meaning here
    room = SIZES[family >> 4]
    if length < 2 * room + 4:
        raise ValueError("its PROXY header is too short for its addresses")
    source, target = data[16 : 16 + room], data[16 + room : 16 + 2 * room]
    source_port, target_port = struct.unpack_from("!HH", data, 16 + 2 * room)
    return Header(size, source, source_port, target, target_port)

"""Numbers as Redis reads and writes them in strings: 64-bit integers, and x86's long doubles.

INCRBYFLOAT computes with 64 bits of mantissa, which no float of Python has: here these are fractions,
rounded as the processor does it.
"""

import re
from fractions import Fraction

LEAST, MOST = -(1 << 63), (1 << 63) - 1
_INTEGER = re.compile(rb"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(rb"([+-]?)([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]+))?")
_HEXADECIMAL = re.compile(rb"([+-]?)0[xX]([0-9a-fA-F]*)(?:\.([0-9a-fA-F]*))?(?:[pP]([+-]?[0-9]+))?")
_INFINITE = re.compile(rb"[+-]?inf(inity)?", re.IGNORECASE)
_TEXT_MOST = 5 * 1024
_PIECE = 4000
_MANTISSA, _LEAST_EXPONENT, _MOST_EXPONENT = 64, -16445, 16383


def integer(text: bytes) -> int | None:
    """What Redis takes for an integer: no sign but "-", no zeros before it, 64 bits."""
    if len(text) > 20 or not _INTEGER.fullmatch(text):
        return None
    value = int(text)
    return value if LEAST <= value <= MOST else None


def long_double(text: bytes) -> Fraction | None:
    """What strtold takes for a finite number; None also for an infinite one: its sum is an error as well.

    Use `infinite` to tell the two.
    """
    if not text or len(text) >= _TEXT_MOST:
        return None
    for pattern, base, power in ((_DECIMAL, 10, 10), (_HEXADECIMAL, 16, 2)):
        found = pattern.fullmatch(text)
        if found is None:
            continue
        sign, whole, part, exponent = found.groups(b"")
        if not whole and not part:
            return None
        digits = _number(whole + part) if base == 10 else int(whole + part, base)
        if not digits:
            return Fraction(0)
        if len(exponent) > 8:  # over any range, whatever the digits
            return None
        scale = int(exponent or 0) - len(part) * (1 if base == 10 else 4)
        if abs(scale) > 6 * _TEXT_MOST:
            return None
        value = rounded(digits * Fraction(power) ** scale)
        if not value:
            return None
        return -value if sign == b"-" else value
    return None


def infinite(text: bytes) -> bool:
    return _INFINITE.fullmatch(text) is not None


def rounded(value: Fraction) -> Fraction | None:
    """To the nearest long double, ties to even; None: too large."""
    if not value:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - _MANTISSA + 1, _LEAST_EXPONENT)
    value = round(value / unit) * unit
    return None if abs(value) >= Fraction(2) ** (_MOST_EXPONENT + 1) else value


def written(value: Fraction) -> bytes:
    """As printf's %.17Lf without the zeros at the end."""
    whole, part = divmod(round(abs(value) * 10**17), 10**17)
    digits = (b"%b.%017d" % (_digits(whole), part)).rstrip(b"0").rstrip(b".")
    return b"-" + digits if value < 0 and digits != b"0" else digits


# Python converts no more than 4,300 digits at once


def _number(digits: bytes) -> int:
    value = 0
    for at in range(0, len(digits), _PIECE):
        piece = digits[at : at + _PIECE]
        value = value * 10 ** len(piece) + int(piece)
    return value


def _digits(value: int) -> bytes:
    rest, last = divmod(value, 10**_PIECE)
    return b"%b%0*d" % (_digits(rest), _PIECE, last) if rest else b"%d" % last

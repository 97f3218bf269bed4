"""Functions that are columns of the tests' domains: of the streams that tests draw, and of payments."""

import math

from numba import njit

STEPS = (0.5, 2.0, 8.0)


@njit
def bit_count(number):
    "A loop, which no expression has."
    count = 0
    while number > 0:
        count += number & 1
        number >>= 1
    return count


def uneven(amount: int, x: float | None, v: int | None) -> float | None:
    "Missing where an amount of its own, and a division by zero, make it so; all types of results within."
    if v is None:
        return None if amount % 3 == 0 else -1.25
    if x is None:
        return math.log(amount / 100.0) if amount > 0 else 1.0 / (amount + 700)
    level = 0
    for step in STEPS:
        if x > step:
            level += 1
    return level + bit_count(amount) / (x - 1.0)


def odd_hour(at: int, opened: int | None, f: bool) -> bool:
    "Whether the hour is odd; since the account was opened, where that is known."
    since = at if opened is None else at - opened
    return (since // 3_600_000 % 2 == 1) != f


def digits(amount: int, gap: int) -> int:
    "Bits of the amount, and of a derived column."
    return bit_count(abs(amount)) * 100 + bit_count(abs(gap))

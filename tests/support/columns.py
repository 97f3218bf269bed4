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


def cents_of_hour(order_amount: int, order_date: int) -> int:
    "Amount and time of a payment: its last digits, in the first half of the hour."
    return order_amount % 100 if order_date // 60_000 % 60 < 30 else -1


def strain(order_amount: float, balance: float | None, type: int, gift: bool) -> float | None:
    "How much a payment takes of a balance, by its type; a division by zero is missing."
    if gift:
        return None
    if balance is None:
        return -1.0
    return math.sqrt(order_amount / balance) + type


def fresh(order_date: int, opened: int, cents: int) -> bool:
    "Whether an account is young; a column that a function gave is read by another."
    return order_date - opened < 40 * 86_400_000 and cents != 7

"""Mathematics written by a seeded generator: worked steps in which every equation holds.

Digits and signs have to be read to predict what follows, so a model that lost them loses here. Randomness is
`random.Random.random()` alone, the one stream that Python promises never to change.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SEED: Final = 1729
PROBLEMS: Final = 600

_PEOPLE: Final = ("Ada", "Emmy", "Carl", "Sofia", "Leonhard", "Srinivasa", "Maryam", "Alan")
_GOODS: Final = ("apples", "pencils", "tickets", "bricks", "stamps", "bottles", "seeds", "tiles")


class Draw:
    """Whole numbers and choices, each equally likely.

    Args:
        seed: of the stream.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def whole(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def word(self, words: Sequence[str]) -> str:
        """One of them."""
        return words[self.whole(0, len(words) - 1)]

    def shuffled(self, count: int) -> list[int]:
        """The numbers below `count` in random order."""
        return sorted(range(count), key=lambda _: self._random.random())


def text(problems: int = PROBLEMS, seed: int = SEED) -> str:
    """So many problems with their solutions, one a paragraph; each kind comes once before any comes again."""
    draw = Draw(seed)
    kinds: list[int] = []
    while len(kinds) < problems:
        kinds += draw.shuffled(len(_KINDS))
    return "\n\n".join(_KINDS[kind](draw) for kind in kinds[:problems])


def _sum(draw: Draw) -> str:
    a, b = draw.whole(100, 9999), draw.whole(100, 9999)
    hundreds, rest = b // 100 * 100, b % 100
    return (
        f"Compute {a} + {b}. First {a} + {hundreds} = {a + hundreds}, then {a + hundreds} + {rest} = {a + b}. "
        f"Check by subtraction: {a + b} - {a} = {b}."
    )


def _product(draw: Draw) -> str:
    a, b = draw.whole(12, 999), draw.whole(12, 99)
    tens, ones = b // 10 * 10, b % 10
    return (
        f"Multiply {a} by {b}. Split {b} = {tens} + {ones}. {a} * {tens} = {a * tens} and {a} * {ones} = {a * ones}. "
        f"Together {a * tens} + {a * ones} = {a * b}, so {a} * {b} = {a * b}."
    )


def _division(draw: Draw) -> str:
    divisor, quotient = draw.whole(3, 40), draw.whole(5, 90)
    rest = draw.whole(0, divisor - 1)
    total = divisor * quotient + rest
    return (
        f"{draw.word(_PEOPLE)} packs {total} {draw.word(_GOODS)} into boxes of {divisor}. "
        f"Since {divisor} * {quotient} = {divisor * quotient} and {total} - {divisor * quotient} = {rest}, "
        f"there are {quotient} full boxes and {rest} left over."
    )


def _equation(draw: Draw) -> str:
    x, b, c = draw.whole(-12, 20), draw.whole(1, 60), draw.whole(2, 6)
    a = c + draw.whole(2, 9)
    right = a * x + b - c * x
    return (
        f"Solve {a}x + {b} = {c}x {_signed(right)}. Subtract {c}x from both sides: {a - c}x + {b} = {right}. "
        f"Subtract {b}: {a - c}x = {right - b}. Divide by {a - c}: x = {x}. "
        f"Check: the left side is {a * x + b}, and the right side is {c * x + right}."
    )


def _quadratic(draw: Draw) -> str:
    p, q = draw.whole(1, 12), draw.whole(1, 12)
    return (
        f"Find the roots of x^2 - {p + q}x + {p * q} = 0. Two numbers with sum {p + q} and product {p * q} are "
        f"{p} and {q}, so the polynomial is (x - {p})(x - {q}). "
        + (f"Its roots are x = {p} and x = {q}." if p != q else f"It has the double root x = {p}.")
    )


def _system(draw: Draw) -> str:
    x, y = draw.whole(1, 30), draw.whole(1, 30)
    price = x + y
    return (
        f"Two numbers have the sum {price} and the difference {x - y}. Adding both equations gives 2a = {2 * x}, "
        f"so a = {x}. Then b = {price} - {x} = {y}. The numbers are {x} and {y}."
    )


def _arithmetic_sequence(draw: Draw) -> str:
    first, step, n = draw.whole(1, 40), draw.whole(2, 15), draw.whole(10, 60)
    shown = ", ".join(str(first + step * i) for i in range(5))
    last = first + step * (n - 1)
    total = n * (first + last) // 2
    return (
        f"The sequence {shown}, ... grows by {step} each time. Its term number {n} is {first} + {step} * {n - 1} = "
        f"{last}. The sum of the first {n} terms is {n} * ({first} + {last}) / 2 = {total}."
    )


def _geometric_sequence(draw: Draw) -> str:
    first, factor = draw.whole(1, 9), draw.whole(2, 5)
    terms = [first * factor**i for i in range(6)]
    return (
        f"What comes next in {', '.join(map(str, terms[:5]))}? Each term is {factor} times the one before it, "
        f"so the next term is {terms[4]} * {factor} = {terms[5]}."
    )


def _recurrence(draw: Draw) -> str:
    a, b = draw.whole(1, 9), draw.whole(1, 9)
    terms = [a, b]
    steps = []
    for _ in range(5):
        steps.append(f"{terms[-2]} + {terms[-1]} = {terms[-2] + terms[-1]}")
        terms.append(terms[-2] + terms[-1])
    return (
        f"Start with {a} and {b}, and let every further term be the sum of the two before it: {', '.join(steps)}. "
        f"The first seven terms are {', '.join(map(str, terms))}."
    )


def _fractions(draw: Draw) -> str:
    b, d = draw.whole(2, 12), draw.whole(2, 12)
    a, c = draw.whole(1, b), draw.whole(1, d)
    common = math.lcm(b, d)
    top = a * common // b + c * common // d
    divisor = math.gcd(top, common)
    end = f" = {top // divisor}/{common // divisor}" if divisor > 1 else ""
    return (
        f"Add {a}/{b} and {c}/{d}. The least common denominator is {common}: {a}/{b} = {a * common // b}/{common} and "
        f"{c}/{d} = {c * common // d}/{common}. So {a}/{b} + {c}/{d} = {top}/{common}{end}."
    )


def _euclid(draw: Draw) -> str:
    factor = draw.whole(2, 18)
    a, b = sorted((factor * draw.whole(5, 60), factor * draw.whole(5, 60)), reverse=True)
    steps, x, y = [], a, b
    while y:
        steps.append(f"{x} = {x // y} * {y} + {x % y}")
        x, y = y, x % y
    return (
        f"The greatest common divisor of {a} and {b} by Euclid's algorithm: {', '.join(steps)}. "
        f"The last divisor is {x}, so gcd({a}, {b}) = {x} and lcm({a}, {b}) = {a * b // x}."
    )


def _percent(draw: Draw) -> str:
    price, share = 20 * draw.whole(2, 90), 5 * draw.whole(1, 12)
    off = price * share // 100
    return (
        f"A price of {price} falls by {share} %. One percent is {price} / 100 = {price / 100:g}, "
        f"so the reduction is {share} * {price / 100:g} = {off}, and the new price is {price} - {off} = {price - off}."
    )


def _speed(draw: Draw) -> str:
    speed, hours, more = draw.whole(20, 110), draw.whole(2, 9), draw.whole(2, 6)
    return (
        f"A train covers {speed * hours} km in {hours} hours. Its speed is {speed * hours} / {hours} = {speed} km an "
        f"hour. In another {more} hours it covers {speed} * {more} = {speed * more} km, "
        f"altogether {speed * hours} + {speed * more} = {speed * (hours + more)} km."
    )


def _derivative(draw: Draw) -> str:
    a, b, c, n = draw.whole(2, 9), draw.whole(2, 9), draw.whole(1, 20), draw.whole(3, 6)
    x = draw.whole(1, 3)
    value = a * n * x ** (n - 1) + 2 * b * x
    return (
        f"Let f(x) = {a}x^{n} + {b}x^2 + {c}. The derivative of x^k is kx^(k-1), so f'(x) = {a * n}x^{n - 1} + "
        f"{2 * b}x. At x = {x} this is {a * n * x ** (n - 1)} + {2 * b * x} = {value}."
    )


def _factors(draw: Draw) -> str:
    number = draw.whole(60, 2000)
    primes, rest, steps = [], number, []
    while rest > 1:
        prime = next(p for p in range(2, rest + 1) if rest % p == 0)
        steps.append(f"{rest} / {prime} = {rest // prime}")
        primes.append(prime)
        rest //= prime
    kind = "composite" if len(primes) > 1 else "prime"
    shown = " * ".join(map(str, primes))
    return f"Factor {number}. {', '.join(steps)}. So {number} = {shown}, and {number} is {kind}."


def _parity_proof(draw: Draw) -> str:
    k = draw.whole(2, 9)
    odd = 2 * draw.whole(1, 40) + 1
    other = 2 * draw.whole(1, 40) + 1
    return (
        f"Claim: the sum of two odd numbers is even. Proof: let the numbers be 2m + 1 and 2n + 1 with whole m and n. "
        f"Their sum is 2m + 2n + 2 = 2(m + n + 1), which is a multiple of 2. For example {odd} + {other} = "
        f"{odd + other} = 2 * {(odd + other) // 2}. In the same way the sum of {2 * k} odd numbers is even."
    )


def _remainder_proof(draw: Draw) -> str:
    n, m = draw.whole(3, 9), draw.whole(10, 60)
    total = sum(range(m, m + n))
    how = f"0 + 1 + ... + {n - 1} = {n * (n - 1) // 2}"
    if n % 2:
        end = f"Since {n} divides {n * (n - 1) // 2}, it divides the sum."
    else:
        end = f"Since {n} does not divide {n * (n - 1) // 2}, it never divides the sum."
    return (
        f"Is the sum of {n} consecutive whole numbers a multiple of {n}? Let the first be m. The sum is {n}m plus "
        f"{how}. {end} With m = {m} the sum is {total}, and the remainder is {total % n}."
    )


def _induction(draw: Draw) -> str:
    n, a = draw.whole(4, 30), draw.whole(2, 9)
    return (
        f"Show that {a} + {2 * a} + ... + {a}n = {a}n(n + 1)/2 for every n. For n = 1 both sides are {a}. If it holds "
        f"for n, then adding {a}(n + 1) to both sides gives {a}(n + 1)(n/2 + 1) = {a}(n + 1)(n + 2)/2, which is the "
        f"claim for n + 1. For n = {n} the sum is {a * n * (n + 1) // 2}."
    )


_KINDS: tuple[Callable[[Draw], str], ...] = (
    _sum,
    _product,
    _division,
    _equation,
    _quadratic,
    _system,
    _arithmetic_sequence,
    _geometric_sequence,
    _recurrence,
    _fractions,
    _euclid,
    _percent,
    _speed,
    _derivative,
    _factors,
    _parity_proof,
    _remainder_proof,
    _induction,
)


def _signed(number: int) -> str:
    """`+ 3` or `- 3`."""
    return f"{'-' if number < 0 else '+'} {abs(number)}"

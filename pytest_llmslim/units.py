"""Numbers to text and back: percent, ratios, bytes, seconds, joules, file names.

Every function is total: `None` becomes `-`, infinity `inf`, and a bound that does not exist `-`.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from pytest_llmslim.errors import SettingError
from pytest_llmslim.readings import MARK

if TYPE_CHECKING:
    from pytest_llmslim.records import Estimate, Reading

NONE = "-"

# (from which size on, factor, unit), smallest first
_SECONDS = ((0.0, 1e-6, "µs"), (1e-3, 1e-3, "ms"), (1.0, 1.0, "s"), (1e3, 60.0, "min"), (7200.0, 3600.0, "h"))
_JOULES = ((0.0, 1e-3, "mJ"), (1.0, 1.0, "J"), (1e3, 1e3, "kJ"), (1e6, 1e6, "MJ"))
_BYTES = ((0.0, 1.0, "B"), (1e3, 1e3, "kB"), (1e6, 1e6, "MB"), (1e9, 1e9, "GB"), (1e12, 1e12, "TB"))
_GRAMS = ((0.0, 1e-6, "µg"), (1e-3, 1e-3, "mg"), (1.0, 1.0, "g"), (1e3, 1e3, "kg"), (1e6, 1e6, "t"))
_SCALES = {"s": _SECONDS, "J": _JOULES, "B": _BYTES, "g": _GRAMS}


def significant(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits, without an exponent between 0.0001 and a million."""
    if value is None:
        return NONE
    if not math.isfinite(value) or value == 0:
        return f"{abs(value) if value == 0 else value:g}"
    text = f"{value:.{digits - 1}e}"
    exponent = int(text.partition("e")[2])
    if not -4 <= exponent < 6:
        return text
    return f"{float(text):.{max(0, digits - 1 - exponent)}f}"


def perplexity(value: float | None) -> str:
    """A perplexity, e.g. `35.6`."""
    return significant(value)


def quantity(value: float | None, unit: str) -> str:
    """A value in `s`, `J`, `B` or `g` with three significant digits and a fitting prefix, e.g. `12.3 ms`."""
    if value is None:
        return NONE
    scale = [step for step in _SCALES.get(unit, ((0.0, 1.0, unit),)) if abs(value) >= step[0]]
    _, factor, name = scale[-1] if value and math.isfinite(value) else (0.0, 1.0, unit)
    return f"{significant(value / factor)} {name}"


def seconds(value: float | None) -> str:
    """A duration in seconds, e.g. `12.3 ms`, `41.0 s`, `1.53 h`."""
    return quantity(value, "s")


def joules(value: float | None) -> str:
    """An energy in joules, e.g. `4.56 J`, `84.1 kJ`."""
    return quantity(value, "J")


def size(value: float | None) -> str:
    """A number of bytes in decimal prefixes, e.g. `498 MB`."""
    return f"{int(value)} B" if value is not None and abs(value) < 1e3 else quantity(value, "B")


def grams(value: float | None) -> str:
    """A mass in grams, e.g. `53.7 mg`."""
    return quantity(value, "g")


def tokens(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A number of tokens with its interval, e.g. `41,200 tokens [38,000, 45,100]`; without a bound, `-`."""
    if value is None:
        return NONE
    bounds = [
        NONE if bound is None or not math.isfinite(bound) else _thousands(bound) for bound in (low, high)
    ]
    bracket = "" if bounds == [NONE, NONE] else f" [{', '.join(bounds)}]"
    return f"{_thousands(value)} tokens{bracket}"


def reading(value: Reading) -> str:
    """A reading with unit, and with its method unless it was measured, e.g. `4.56 J (estimated)`."""
    text = size(value.value) if value.unit == "B" else quantity(value.value, value.unit)
    return f"{text} ({value.method})" if value.method in ("sampled", "estimated", "simulated") else text


def percent(fraction: float | None, *, signed: bool = True) -> str:
    """A change, e.g. `+4.1 %` for 0.041."""
    if fraction is None:
        return NONE
    value = 100 * fraction
    return f"{_fixed(value, _decimals(value), signed=signed)} %"


def percent_limit(fraction: float) -> str:
    """A limit as it was written, e.g. `3 %` for 0.03."""
    return f"{100 * fraction:.6g} %"


def change(
    ratio: float, low: float | None = None, high: float | None = None, *, limit: float | None = None
) -> str:
    """A ratio in words, e.g. `4.1 % [3.8, 4.4] over` for 1.041 [1.038, 1.044].

    Args:
        ratio: value / what it is compared with.
        low: lower bound of the ratio; `None` or 0: there is none.
        high: upper bound of the ratio; `None` or infinity: there is none.
        limit: a fraction; the text gets as many decimals as it takes to tell the change from it.
    """
    sign = -1 if ratio < 1 else 1
    value = 100 * sign * (ratio - 1)
    decimals = _decimals(value, None if limit is None else 100 * sign * limit)
    bounds = [None if not bound else 100 * sign * (bound - 1) for bound in (low, high)]
    side = "under" if sign < 0 else "over"
    return f"{_fixed(value, decimals)} %{_bracket(bounds[::sign], decimals)} {side}"


def ratio(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A ratio or score with its interval, e.g. `1.041 [1.038, 1.044]`.

    A bound of 0, infinity or `None` says that there is no bound.
    """
    if value is None:
        return NONE
    if 0.1 <= abs(value) < 100:
        return f"{value:.3f}{_bracket([low or None, high], 3)}"
    return f"{significant(value)}{_bracket([low or None, high])}"


def estimate(value: Estimate) -> str:
    """An estimate with its interval, and with its method where it is sampled or estimated."""
    text = ratio(value.value, value.low, value.high)
    return f"{text} ({value.method})" if value.known and value.method in ("sampled", "estimated") else text


def marked(value: Estimate | None, *, interval: bool = False) -> str:
    """An estimate behind the mark of how it was had, e.g. `~0.758`; the word of its method where it has no number."""
    if value is None:
        return NONE
    if not value.known:
        return value.method
    bounds = (value.low, value.high) if interval else (None, None)
    return MARK.get(value.method, "") + ratio(value.value, *bounds)


def printable(text: str) -> str:
    """A text without control characters: a name out of a file may not steer the terminal that it is printed on."""
    return "".join(character for character in text if unicodedata.category(character)[0] != "C")


def parse_percent(text: object, name: str = "a limit") -> float:
    """The fraction that a percentage such as `3%` or `2.5 %` stands for.

    A bare number is refused: `0.03` and `3` both could mean three percent.

    Args:
        text: a number and a percent sign; above -100 %.
        name: the option or marker keyword, for the message.

    Raises:
        SettingError: no percentage, not finite, or -100 % and below.
    """
    number = str(text).strip()
    try:
        value = Decimal(number.removesuffix("%").strip()) if number.endswith("%") else Decimal("nan")
    except InvalidOperation:
        value = Decimal("nan")
    if not value.is_finite() or value <= -100:
        raise SettingError(f'{name} is a percentage above -100 %, written like "3%", got {text!r}')
    return float(value / 100)


def safe_file_name(text: str) -> str:
    """A file name for a model, suite or recipe: `meta-llama/Llama-3` becomes `meta-llama--Llama-3`.

    The name has no separators and no leading dot or dash, is at most 100 characters long and safe on every
    system. Distinct texts stay distinct: whatever cannot be read back gets a digest after a `~`.
    """
    name = text.replace("/", "--").replace(":", "__")
    readable = name.replace("--", "/").replace("__", ":") == text
    if readable and _PLAIN_NAME.fullmatch(name) and name.lower() not in _RESERVED:
        return name
    kept = _UNSAFE.sub("-", name).lstrip("-.")[:_KEPT]
    return f"{kept or '_'}~{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


_KEPT = 87
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+=,()-]{0,98}[A-Za-z0-9_+=,()-])?", re.ASCII)
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=,()-]", re.ASCII)
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


def _decimals(value: float, limit: float | None = None) -> int:
    """One decimal from 1 on, none from 100 on, two significant digits below; more to tell it from `limit`."""
    if not math.isfinite(value):
        return 0
    magnitude = abs(value)
    if magnitude >= 0.995 or magnitude < 1e-6:
        decimals = 0 if magnitude >= 99.95 else 1
    else:
        decimals = 1 - math.floor(math.log10(magnitude))
    if limit is None or math.isclose(value, limit, rel_tol=1e-9):
        return decimals
    while decimals < 6 and round(value, decimals) == round(limit, decimals):
        decimals += 1
    return decimals


def _thousands(value: float) -> str:
    """Three significant digits, whole from one on and with thousands apart, e.g. `41,200`."""
    text = significant(value)
    if not math.isfinite(value) or abs(value) >= 1e12:
        return text
    return f"{float(text):,.0f}" if abs(value) >= 1 else text


def _fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    return text if text.strip("+-0.") else text.lstrip("+-")


def _bracket(bounds: list[float | None], decimals: int | None = None) -> str:
    """An interval in brackets; a bound that does not exist is `-`, and without any there is no bracket."""

    def text(bound: float | None) -> str:
        if bound is None or not math.isfinite(bound):
            return NONE
        return significant(bound) if decimals is None else _fixed(bound, decimals)

    texts = [text(bound) for bound in bounds]
    return "" if texts == [NONE, NONE] else f" [{', '.join(texts)}]"

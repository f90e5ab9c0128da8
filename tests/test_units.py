from __future__ import annotations

import math
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sample_records import blocks, cost

from pytest_llmslim import units
from pytest_llmslim.errors import SettingError
from pytest_llmslim.records import Estimate, Reading, no_estimate, unmeasured

INF = math.inf
finite = st.floats(-1e300, 1e300)


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.041, "+4.1 %"),
        (-0.041, "-4.1 %"),
        (0.0, "0.0 %"),
        (-0.0, "0.0 %"),
        (1e-12, "0.0 %"),
        (0.0036, "+0.36 %"),
        (0.00996, "+1.0 %"),
        (0.3333, "+33.3 %"),
        (1.2345, "+123 %"),
        (INF, "+inf %"),
        (None, "-"),
    ],
)
def test_percent(fraction: float | None, text: str) -> None:
    """A change has a sign, one decimal from 1 % on and two significant digits below."""
    assert units.percent(fraction) == text


def test_percent_without_sign() -> None:
    """The sign of an increase can be left out."""
    assert units.percent(0.041, signed=False) == "4.1 %"


@pytest.mark.parametrize(("fraction", "text"), [(0.03, "3 %"), (0.025, "2.5 %"), (-0.2, "-20 %")])
def test_percent_limit(fraction: float, text: str) -> None:
    """A limit is shown as it was written."""
    assert units.percent_limit(fraction) == text


@pytest.mark.parametrize(
    ("ratio", "low", "high", "limit", "text"),
    [
        (1.041, 1.038, 1.044, None, "4.1 % [3.8, 4.4] over"),
        (0.995, 0.992, 0.998, None, "0.50 % [0.20, 0.80] under"),
        (0.995, 0.99, 1.002, None, "0.50 % [-0.20, 1.00] under"),
        (1.03004, 1.02, 1.04, 0.03, "3.004 % [2.000, 4.000] over"),
        (1.03, None, None, 0.03, "3.0 % over"),
        (1.5, 0.0, INF, None, "50.0 % over"),
        (1.5, 0.0, 1.6, None, "50.0 % [-, 60.0] over"),
        (0.5, 0.0, 0.6, None, "50.0 % [40.0, -] under"),
        (1.0, 1.0, 1.0, None, "0.0 % [0.0, 0.0] over"),
        (INF, INF, INF, 0.03, "inf % over"),
    ],
)
def test_change(ratio: float, low: float | None, high: float | None, limit: float | None, text: str) -> None:
    """A ratio in words has a side, ordered bounds, and enough digits to differ from the limit."""
    assert units.change(ratio, low, high, limit=limit) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (1.041, 1.038, 1.044, "1.041 [1.038, 1.044]"),
        (1.041, None, None, "1.041"),
        (1.041, 0.0, INF, "1.041"),
        (1.041, 0.0, 1.1, "1.041 [-, 1.100]"),
        (0.01234, 0.0123, 0.0124, "0.0123 [0.0123, 0.0124]"),
        (1234.5, None, None, "1230"),
        (1e9, None, None, "1.00e+09"),
        (INF, INF, INF, "inf"),
        (None, None, None, "-"),
    ],
)
def test_ratio(value: float | None, low: float | None, high: float | None, text: str) -> None:
    """A ratio shows its interval, and `-` for a bound that does not exist."""
    assert units.ratio(value, low, high) == text


def test_estimate_names_how_energy_was_had() -> None:
    """An estimated ratio says so; an unknown one is a dash."""
    assert units.estimate(cost(blocks(0.7), "estimated")) == "0.700 [0.700, 0.700] (estimated)"
    assert units.estimate(cost(blocks(0.7))) == "0.700 [0.700, 0.700]"
    assert units.estimate(no_estimate("no meter")) == "-"


@pytest.mark.parametrize(
    ("found", "short", "long"),
    [
        (cost(blocks(0.7)), "0.700", "0.700 [0.700, 0.700]"),
        (cost(blocks(0.7), "estimated"), "~0.700", "~0.700 [0.700, 0.700]"),
        (cost(blocks(0.7), "sampled"), "^0.700", "^0.700 [0.700, 0.700]"),
        (Estimate(0.7, 0.0, INF, 1, "estimated", "codecarbon"), "~0.700", "~0.700"),
        (Estimate(INF, 2.0, INF, 9, "estimated", "parts"), "~inf", "~inf [2.00, -]"),
        (no_estimate("no meter"), "unmeasured", "unmeasured"),
        (no_estimate("only rounded", method="simulated"), "simulated", "simulated"),
        (None, "-", "-"),
    ],
)
def test_a_marked_estimate_says_how_it_was_had(found: Estimate | None, short: str, long: str) -> None:
    """By a mark before the number, or by a word in its place; a bound that does not exist is none."""
    assert units.marked(found) == short
    assert units.marked(found, interval=True) == long


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, "12.3 ms"),
        (4.56e-5, "45.6 µs"),
        (41.0, "41.0 s"),
        (5497.333, "91.6 min"),
        (7200.0, "2.00 h"),
        (0.0, "0 s"),
        (INF, "inf s"),
        (None, "-"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    """A duration has three significant digits and a fitting unit."""
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.3451, "345 mJ"), (4.561, "4.56 J"), (84060.0, "84.1 kJ"), (None, "-")]
)
def test_joules(value: float | None, text: str) -> None:
    """An energy has three significant digits and a fitting unit."""
    assert units.joules(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (497_759_232, "498 MB"), (None, "-")]
)
def test_size(value: float | None, text: str) -> None:
    """Bytes below a thousand are whole, above they have decimal prefixes."""
    assert units.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(5.37e-5, "53.7 µg"), (0.0537, "53.7 mg"), (1.5, "1.50 g"), (1500.0, "1.50 kg"), (None, "-")],
)
def test_grams(value: float | None, text: str) -> None:
    """A mass has three significant digits and a fitting unit."""
    assert units.grams(value) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (41_234.0, 38_049.0, 45_060.0, "41,200 tokens [38,000, 45,100]"),
        (1_234_567.0, None, None, "1,230,000 tokens"),
        (12.34, 11.0, INF, "12 tokens [11, -]"),
        (0.5, None, None, "0.500 tokens"),
        (3e15, None, None, "3.00e+15 tokens"),
        (INF, INF, INF, "inf tokens"),
        (None, 1.0, 2.0, "-"),
    ],
)
def test_tokens(value: float | None, low: float | None, high: float | None, text: str) -> None:
    """A number of tokens has three significant digits and its thousands apart."""
    assert units.tokens(value, low, high) == text


def test_perplexity() -> None:
    """A perplexity has three significant digits."""
    assert [units.perplexity(v) for v in (35.56, 6.0, INF, None)] == ["35.6", "6.00", "inf", "-"]


def test_reading_carries_its_method() -> None:
    """A reading that was not measured says so."""
    assert units.reading(Reading(4.56, "J", "rapl", "measured")) == "4.56 J"
    assert units.reading(Reading(4.56, "J", "codecarbon", "estimated")) == "4.56 J (estimated)"
    assert units.reading(Reading(512, "B", "rss", "measured")) == "512 B"
    assert units.reading(unmeasured("J", "none", "no meter")) == "-"


@given(st.floats(), st.none() | st.floats(), st.none() | st.floats())
def test_every_number_has_a_text(value: float, low: float | None, high: float | None) -> None:
    """No number makes formatting fail."""
    assert units.ratio(value, low, high)
    assert units.change(value, low, high, limit=0.03)
    assert units.percent(value)
    assert units.quantity(value, "s")
    assert units.quantity(value, "g")
    assert units.tokens(value, low, high)


@given(finite, st.integers(1, 9))
def test_significant_digits_are_right(value: float, digits: int) -> None:
    """The text is the number to within half a unit of its last digit."""
    assert float(units.significant(value, digits)) == pytest.approx(
        value, rel=0.51 * 10 ** (1 - digits), abs=0
    )


@pytest.mark.parametrize(
    ("text", "fraction"),
    [("3%", 0.03), (" 3 % ", 0.03), ("2.9%", 0.029), ("0%", 0.0), ("-20 %", -0.2), ("+1e1%", 0.1)],
)
def test_parse_percent(text: str, fraction: float) -> None:
    """A percentage is read exactly."""
    assert units.parse_percent(text) == fraction


@pytest.mark.parametrize(
    "text", ["3", "0.03", 0.03, 3, "", "%", "three %", "nan%", "inf%", "-100%", "3%%", None]
)
def test_parse_percent_refuses(text: object) -> None:
    """A bare number is refused, since 0.03 and 3 could both mean three percent."""
    with pytest.raises(SettingError, match='--llm-x is a percentage above -100 %, written like "3%", got'):
        units.parse_percent(text, "--llm-x")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gpt2", "gpt2"),
        ("embedded:gpt2", "embedded__gpt2"),
        ("meta-llama/Llama-3.1-8B", "meta-llama--Llama-3.1-8B"),
        ("suites/test_ptq.py", "suites--test_ptq.py"),
    ],
)
def test_usual_names_stay_readable(text: str, name: str) -> None:
    """Names of models and suites are files that a person recognises."""
    assert units.safe_file_name(text) == name


@given(st.text(max_size=150))
@example("..")
@example(".")
@example("")
@example("/etc/passwd")
@example("../../x")
@example("C:\\x")
@example("CON")
@example("x" * 300)
@example("a\x00b")
@example("\ud800")
def test_every_name_is_safe(text: str) -> None:
    """A file name has no separator, leading dot or dash, odd character or great length."""
    name = units.safe_file_name(text)
    assert 0 < len(name) <= 100
    assert name[0] not in ".-"
    assert name.lower() not in ("con", "nul")
    assert not set(name) & {"/", "\\", ":", os.sep, "\x00", "*", "?", " "}
    assert name.isascii()


@given(*[st.text(alphabet="a-_:/.~é", max_size=8)] * 2)
@example("a/b", "a--b")
@example("a:b", "a__b")
@example("a/-b", "a-/b")
def test_distinct_names_stay_distinct(one: str, other: str) -> None:
    """Two names share a file only when they are equal."""
    assert (units.safe_file_name(one) == units.safe_file_name(other)) == (one == other)


def test_long_names_stay_distinct() -> None:
    """A difference behind the cut still tells two names apart."""
    assert units.safe_file_name("m" * 200 + "a") != units.safe_file_name("m" * 200 + "b")

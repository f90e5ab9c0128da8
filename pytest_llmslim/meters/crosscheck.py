"""Two sources over the same windows: one gives the readings, the other says whether to believe them.

Counters can be wrong: an idle GPU was seen to count 187 J where its power readings came to 327 J (zeus, issue
181). So NVML's counter is compared with NVML's power readings, once at opening and then in every window. On a
CPU there is nothing to compare RAPL with: what else gives a figure there is a model, and models do not check
measurements.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING

from pytest_llmslim import units
from pytest_llmslim.records import Metering

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmslim.meters import Meter
    from pytest_llmslim.records import Reading

AGREE = 0.2
"""Two sources whose ratio is further than this from 1 do not agree, and their energy is not to be gated on."""
SELF_TEST_S = 1.0
LONGEST_SELF_TEST_S = 6.0
LENGTHENED_S = 1.0
"""Windows are lengthened to what the second source needs, up to this. One that needs more is compared in the self
test, up to its limit, and in windows that happen to be long enough."""
MARGIN = 1.1
"""Of a window over the shortest one, since the clocks of two meters do not start together."""
MEASURING = ("measured", "sampled")


class CrossCheck:
    """Reads two meters over the same windows, and answers with the readings of the first.

    What the second gives is only ever divided by what the first gives. A fault of the second costs that
    ratio and nothing else.

    Args:
        first: whose readings are given.
        second: whose windows lie around those of the first.
        wait: sleeps for so many seconds; the self test at opening is a window of that.

    Raises:
        ValueError: one of them does not measure, or both have one source.
    """

    def __init__(self, first: Meter, second: Meter, *, wait: Callable[[float], object] = time.sleep) -> None:
        for meter in (first, second):
            if meter.method not in MEASURING:
                raise ValueError(
                    f"a cross-check is of meters that measure, got {meter.source} ({meter.method})"
                )
        if first.source == second.source:
            raise ValueError(f"a cross-check needs two sources, got {first.source} twice")
        self.source, self.method = first.source, first.method
        both = max(first.min_window_s, second.min_window_s)
        self.min_window_s = both if both <= LENGTHENED_S else first.min_window_s
        self.because: tuple[str, ...] = ()
        self._first, self._second = first, second
        self._opening: float | None = None
        self._missing = f"its windows last {units.seconds(second.min_window_s)} or more"
        self._ratios: list[float] = []
        self._self_test(wait)

    @property
    def description(self) -> str:
        """Both sources, and whether they agree so far."""
        return f"{self._first.description}; {self._opinion()}"

    def start(self) -> None:
        """Begins a window of both."""
        with _at_its_own_cost():
            self._second.start()
        self._first.start()

    def stop(self) -> Reading:
        """Ends the window of both, and gives the first one's reading."""
        reading, ratio = self._end()
        if ratio is not None:
            self._ratios.append(ratio)
        return reading

    def metering(self) -> Metering:
        """The median ratio of second to first over all windows, or that of the self test before there are any."""
        return Metering(second_source=self._second.source, second_ratio=self._ratio())

    def close(self) -> None:
        """Closes both."""
        with _at_its_own_cost():
            self._second.close()
        self._first.close()

    def _self_test(self, wait: Callable[[float], object]) -> None:
        """One window in which nothing of ours runs."""
        seconds = max(SELF_TEST_S, MARGIN * max(self._first.min_window_s, self._second.min_window_s))
        if seconds <= LONGEST_SELF_TEST_S:
            self.start()
            wait(seconds)
            self._opening = self._end()[1]

    def _end(self) -> tuple[Reading, float | None]:
        reading, ratio = self._first.stop(), None
        with _at_its_own_cost():
            other = self._second.stop()
            self._missing = other.reason
            ratio = other.value / reading.value if other.value and reading.value else None
        return reading, ratio

    def _ratio(self) -> float | None:
        return statistics.median(self._ratios) if self._ratios else self._opening

    def _opinion(self) -> str:
        ratio, second = self._ratio(), self._second.source
        if ratio is None:
            return f"not checked by {second} so far: {self._missing or 'its own reading is missing'}"
        count = len(self._ratios)
        windows = f"{count} window{'s' * (count > 1)}" if count else "an idle window at opening"
        compared = f"{second} gives {units.significant(ratio)} times its energy over {windows}"
        if agree(ratio):
            return f"checked: {compared}"
        return f"unreliable: {compared}, and sources that agree are within {AGREE:.0%} of each other"


def _at_its_own_cost() -> contextlib.suppress:
    """Whatever the second source raises, against what a meter promises, is not worth a reading of the first."""
    return contextlib.suppress(Exception)


def agree(ratio: float) -> bool:
    """Whether two sources with this ratio of energies tell the same."""
    return abs(ratio - 1) <= AGREE

"""A meter that gives prepared readings: for tests, and for recorded runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmslim.meters.window import WindowMeter
from pytest_llmslim.records import Reading, unmeasured

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_llmslim.records import Method


class ReplayMeter(WindowMeter):
    """Gives one prepared reading a window, in order.

    Args:
        values: readings, given as they are, or plain numbers in the unit, judged as any meter's
            are (0, negative numbers and NaN come out `unmeasured`).
        source: see `Meter.source`.
        method: see `Meter.method`; applies to the plain numbers.
        unit: `J` or `B`.
    """

    def __init__(
        self,
        values: Iterable[Reading | float],
        *,
        source: str = "replay",
        method: Method = "measured",
        unit: str = "J",
    ) -> None:
        super().__init__(
            source=source, method=method, resolution=None, description="prepared readings", unit=unit
        )
        self._values = iter(values)

    def _begin(self) -> None:
        pass

    def _end(self, seconds: float) -> float:
        raise NotImplementedError("stop() gives whole readings")

    def _abandon(self) -> None:
        self._opened_ns = None  # a dropped window uses up no prepared reading

    def stop(self) -> Reading:
        """Gives the next prepared reading, or `unmeasured` when there is none left."""
        opened, self._opened_ns = self._opened_ns, None
        if opened is None:
            return unmeasured(self._unit, self.source, self._fault)
        value = next(self._values, None)
        if value is None:
            return unmeasured(self._unit, self.source, f"{self.source} has no reading left")
        return value if isinstance(value, Reading) else self._judge(float(value), 1.0, "")

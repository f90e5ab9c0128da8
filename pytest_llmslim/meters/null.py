"""A meter for where nothing can be measured. It says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmslim.records import Metering, unmeasured

if TYPE_CHECKING:
    from pytest_llmslim.records import Method, Reading


class NullMeter:
    """Answers every window with `unmeasured` and the same reason.

    Args:
        reason: a sentence that tells why nothing is measured; never empty.
        unit: `J` or `B`.

    Raises:
        ValueError: an empty reason.
    """

    source = "none"
    method: Method = "unmeasured"
    min_window_s = 0.0

    def __init__(self, reason: str, *, unit: str = "J") -> None:
        if not reason:
            raise ValueError("a null meter needs a reason, got an empty one")
        self.description = reason
        self.because: tuple[str, ...] = ()
        self._unit = unit

    def start(self) -> None:
        """Begins nothing."""

    def stop(self) -> Reading:
        """Gives the reason."""
        return unmeasured(self._unit, self.source, self.description)

    def metering(self) -> Metering:
        """Nothing to tell."""
        return Metering()

    def close(self) -> None:
        """Holds nothing."""

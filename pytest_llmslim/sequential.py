"""When to look at growing samples, and what each look may spend, so that a whole run seldom errs.

A measurement is looked at after 8, 12, 18, 27 and 40 blocks and ends at the first look that decides. The error
is split evenly over the looks (Bonferroni), and over the gates of a run by Holm's procedure, taken in the order
of time: a gate is tested at `alpha / (gates - failed so far)`. That errs with at most `alpha`: before the first
false alarm all that failed was truly worse, at most `gates - n` of `gates` where `n` are not worse, so each of
these `n` is tested at `alpha / n` at most. It needs no p-value of a later test, so a test fails when it ends.

Source: Holm, A simple sequentially rejective multiple test procedure (1979).
"""

from __future__ import annotations

from typing import Final

LOOKS: Final = (8, 12, 18, 27, 40)
"""Blocks at which a decision is tried."""
ALPHA: Final = 0.01
"""Chance of any false `failed` on time, energy or opt in a whole run."""
RESERVE: Final = 0.1
"""Share of it for measurements that could not be foreseen at collection."""


def looks_up_to(blocks: int) -> tuple[int, ...]:
    """The looks of a measurement of at most `blocks` blocks; the last one is at `blocks`."""
    return (*(look for look in LOOKS if look < blocks), blocks)


class Family:
    """All noisy gates of a run, which share one error.

    Args:
        planned: gates that collection foresaw.
        alpha: chance of any false alarm among all of them.
    """

    def __init__(self, planned: int, alpha: float = ALPHA) -> None:
        self.planned, self.alpha = planned, alpha
        self._decided = self._failed = 0

    def level(self) -> float:
        """What the next gate may spend over all its looks.

        Gates beyond the planned ones share the reserve: half of it the first, a quarter the second, and so on.
        """
        beyond = self._decided - self.planned
        if beyond < 0:
            return self.alpha * (1 - RESERVE) / (self.planned - self._failed)
        return self.alpha * RESERVE / 2.0 ** (beyond + 1)

    def close(self, *, decided: int, failed: int) -> None:
        """Takes note of gates that are through, and how many of them failed."""
        self._decided += decided
        self._failed += min(failed, self.planned - 1 - self._failed)

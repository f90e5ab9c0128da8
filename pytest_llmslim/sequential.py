"""When to look at growing samples, and what each look may spend, so that a whole run seldom errs.

A measurement is looked at after 8, 12, 18, 27 and 40 blocks and ends at the first look that decides. The error
is split evenly over the looks (Bonferroni), and over the gates of a run by Holm's procedure, taken in the order
of time: of `m` planned gates, each is tested at `alpha / (m - failed so far)`.

That errs with at most `alpha`. Let `n` of the `m` gates be not worse. Until the first false alarm all that failed
was truly worse, at most `m - n` gates, so each of the `n` has been tested at `alpha / n` or less; a first false
alarm is thus one of `n` events of probability `alpha / n` at most, and these add up to `alpha` however the gates
depend on each other. It needs no p-value of a later test, so a test fails when it ends. What it rejects, Holm's
procedure on all p-values rejects too: if a gate were the first to fail online and not by Holm, `F` others that
failed before it are among Holm's `H >= F`, and Holm stopped since its p is above `alpha / (m - H)`, which is no
less than `alpha / (m - F)`. And it rejects whatever Bonferroni's `alpha / m` does.

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
    """The looks of a measurement of at most `blocks` blocks; the last one is at `blocks`.

    Raises:
        ValueError: no block.
    """
    if blocks < 1:
        raise ValueError(f"a measurement has at least one block, got {blocks}")
    return (*(look for look in LOOKS if look < blocks), blocks)


class Family:
    """All noisy gates of a run, which share one error.

    Planned gates share `1 - RESERVE` of it as above; the reserve goes to gates beyond them: half of it to the
    first, a quarter to the second, and so on, which adds up to less than the whole reserve. Where nothing was
    planned, all of `alpha` is the reserve.

    Args:
        planned: gates that collection foresaw.
        alpha: chance of any false alarm among all of them.

    Raises:
        ValueError: fewer than no gate, or an `alpha` that is no chance.
    """

    def __init__(self, planned: int, alpha: float = ALPHA) -> None:
        if planned < 0 or not 0 < alpha < 1:
            raise ValueError(f"a family has 0 or more gates and alpha within 0 and 1, got {planned}, {alpha}")
        self.planned, self.alpha = planned, alpha
        self._reserve = alpha * RESERVE if planned else alpha
        self._decided = self._failed = 0

    def level(self, gates: int = 1) -> float:
        """What each of the next gates may spend over all its looks.

        Args:
            gates: how many are decided together before the next `close`; all get the same, so that gates beyond
                the planned ones share their parts of the reserve evenly. 0 counts as 1.
        """
        gates = max(1, gates)
        left = max(0, self.planned - self._decided)
        parts = []
        if left:
            parts.append((self.alpha - self._reserve) / (self.planned - self._failed))
        if gates > left:
            before, beyond = max(0, self._decided - self.planned), gates - left
            parts.append(self._reserve * (0.5**before - 0.5 ** (before + beyond)) / beyond)
        return min(parts)

    def close(self, *, decided: int, failed: int) -> None:
        """Takes note of gates that are through, and how many of them failed.

        Raises:
            ValueError: a negative number, or more failed than decided.
        """
        if not 0 <= failed <= decided:
            raise ValueError(f"of the gates that are through, none to all failed, got {failed} of {decided}")
        self._decided += decided
        self._failed += failed

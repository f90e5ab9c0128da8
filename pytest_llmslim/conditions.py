"""What the machine, and not the candidate, can have made of a ratio: memory layout, other load, a slower processor.

Reference and candidate are measured side by side, so what slows both down alike cancels. Unlike kernels are not slowed
down alike: whoever is put off its core finds cold caches again, and whoever shares its core with another
process's arithmetic waits for the same units. A stored ratio was measured under other conditions than today's, so
what they can explain is not held against the candidate.

Measured on a shared virtual machine with two threads of one core, embedded models (time ratio to the reference):

=====================================  =====  =====  =====  ==========================
conditions                             int8   int4   ah90   reference takes
=====================================  =====  =====  =====  ==========================
alone                                  1.25   0.86   0.875  1
beside one other process a core        1.36   0.88   0.88   1 (wall / CPU time 1.9)
beside three                           1.46   0.94   0.89   1 (wall / CPU time 5)
matrix products on the other thread    1.55   0.97   -      1.4 (wall / CPU time 1.0)
=====================================  =====  =====  =====  ==========================

The copy of the reference is at 1.00 in each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_llmslim import units

if TYPE_CHECKING:
    from pytest_llmslim.records import Record

LAYOUT: Final = 0.055
"""What memory layout alone can add to the time of one of two equal copies, for a whole process (measured)."""
LOAD: Final = {"other": 0.25, "same": 0.03}
"""The most that conditions were seen to add to a ratio, by the candidate's kernels."""
PACE: Final = 0.75
"""Of what the reference takes longer than it did, the most that a ratio was seen to grow by. Where it takes less, as
much is allowed: what speeds it up need not speed up other kernels."""
BUSIER: Final = 1.25
"""A machine is busier, or slower, than at another time when its figure is this many times as large."""
WALL_AGREES: Final = 1.1
"""Wall time is gated where it is at most this times the process CPU time of the reference: on a quiet machine."""
BUSY_BASELINE: Final = (
    "baselines were measured while the machine was busy with other work; write them again on a quiet one, "
    "or later runs there cannot be told from it"
)


class Explained(NamedTuple):
    """By how much conditions alone can have raised a ratio, as a fraction; which, and what to do about them.

    `why` goes on with "alone can make ...".
    """

    share: float = 0.0
    why: str = ""
    advice: str = "run it again when it is quiet"


def wall_agrees(wall_over_cpu: float | None) -> bool:
    """Whether wall time tells the same as process CPU time; not where nothing is known of it, as on a GPU."""
    return wall_over_cpu is not None and wall_over_cpu <= WALL_AGREES


def busier(record: Record, stored: Record | None) -> bool:
    """Whether a record was measured beside more load than a stored one, or than a quiet machine has."""
    now = record.sampling.wall_over_cpu
    then = stored.sampling.wall_over_cpu if stored else None
    return now is not None and now > max(WALL_AGREES, BUSIER * (then or 0))


def slower(record: Record, stored: Record) -> float:
    """How many times as long the reference takes; 1 where the clocks cannot be compared."""
    now, then = record.reference.time_s, stored.reference.time_s
    if now.value is None or then.value is None or now.source != then.source:
        return 1.0
    return now.value / then.value


def explained(record: Record, stored: Record | None) -> Explained:
    """What can have raised a record's ratios, against those of a stored record or against its own reference."""
    most = LOAD[record.integrity.kernels]
    if busier(record, stored):
        wall = record.sampling.wall_over_cpu or 0.0
        return Explained(most, f"The machine is busy with other work (wall / CPU time {wall:.2f}), which")
    times = slower(record, stored) if stored else 1.0
    if times == 1:
        return Explained()
    how = "slower" if times > 1 else "faster"
    why = f"The machine is {how} than it was (the reference takes {times:.2f} times as long), which"
    return Explained(min(most, PACE * (max(times, 1 / times) - 1)), why)


def hidden(stored: Record, record: Record) -> float:
    """By how much conditions may have raised a stored ratio, so that it would let too much pass.

    Small differences of pace are everyday, and within what a passed verdict may have missed.
    """
    if busier(stored, record) or slower(stored, record) > BUSIER:
        return explained(stored, record).share
    return 0.0


def layout(record: Record) -> Explained:
    """What memory that was not renewed can have added."""
    if record.sampling.movable:
        return Explained()
    why = "The models are too large to be moved in memory, and another layout"
    return Explained(LAYOUT, why, "run it again in another process, or with more memory")


def sentence(found: Explained) -> str:
    """Why what is past a limit is not failed, and what to do."""
    return f"{found.why} alone can make {units.percent_limit(round(found.share, 3))}; {found.advice}."

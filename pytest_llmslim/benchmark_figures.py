"""Our timings as pytest-benchmark sees them: in its JSON, its saved runs and its histograms.

Nothing of ours depends on pytest-benchmark's timing or on its being enabled (it switches itself off under
xdist). The pairs that were timed are replayed to it through a clock, by its public `timer` option.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmslim.reports.files import figures

if TYPE_CHECKING:
    from pytest_llmslim.records import Record

OUTPUTS = ("json", "save", "autosave", "csv", "histogram", "compare")
"""Its options that make use of figures. Without one of them only its own table would be printed beside ours."""


class ReplayClock:
    """A timer that, called before and after a round, lets as much time pass as was measured. Seconds."""

    def __init__(self) -> None:
        self.durations: list[float] = []
        self._now = 0.0
        self._running = False

    def __call__(self) -> float:
        """Seconds on a clock of its own."""
        if self._running:
            self._now += self.durations.pop(0)
        self._running = not self._running
        return self._now


def show(request: pytest.FixtureRequest, record: Record, seconds: list[float]) -> None:
    """Hand the candidate's timed runs and its figures to pytest-benchmark, where its output was asked for.

    Args:
        request: of the running test.
        record: goes into `extra_info`.
        seconds: wall time of each timed forward pass of the candidate.
    """
    config = request.config
    wanted = any(config.getoption(f"benchmark_{name}", None) not in (None, False, []) for name in OUTPUTS)
    if not wanted or not config.pluginmanager.hasplugin("benchmark") or "benchmark" in request.fixturenames:
        return
    clock = ReplayClock()
    clock.durations = list(seconds)
    request.node.add_marker(pytest.mark.benchmark(group=record.key.model, timer=clock))
    benchmark = request.getfixturevalue("benchmark")
    benchmark.extra_info.update(extra_info(record))
    # One iteration a round: pytest-benchmark reads the clock twice around each call of the empty function.
    benchmark.pedantic(lambda: None, rounds=len(seconds), iterations=1)


def extra_info(record: Record) -> dict[str, object]:
    """The figures of a record that stand beside pytest-benchmark's own; `None` where there is no number."""
    return {
        "model": record.key.model,
        "recipe": record.key.recipe,
        **figures(record),
        "mean_kl": record.divergence.mean_kl if record.divergence else None,
        "profile": record.profile.name,
    }

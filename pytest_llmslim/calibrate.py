"""`pytest --llm-calibrate`: the noise of this machine, from models measured against copies of themselves.

Nothing is tested. Models, text, meter and pairs are those of a normal run; all looks are taken, and what was
recorded is replayed through the gate (`noise.py`).
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final

import torch

from pytest_llmslim import noise, units
from pytest_llmslim.collection import model_label
from pytest_llmslim.conditions import wall_agrees
from pytest_llmslim.encoding import to_builtins
from pytest_llmslim.errors import SettingError
from pytest_llmslim.measure import QUICK_PAIRS, Duet, Measured, Plan
from pytest_llmslim.models.storage import copy_model
from pytest_llmslim.noise import LEAST_BLOCKS, REPLAYS, Calibration, Proposal, Series
from pytest_llmslim.pace import watch
from pytest_llmslim.pairs import energy_pairs, log_ratios
from pytest_llmslim.reports.calibration import model_lines, proposal_lines
from pytest_llmslim.reports.files import make_folder
from pytest_llmslim.session import Session
from pytest_llmslim.state import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import pytest

    from pytest_llmslim.records import Axis
    from pytest_llmslim.reports.terminal import Line
    from pytest_llmslim.settings import Settings

SCHEMA: Final = 1
INTERRUPTED: Final = 2
"""pytest's exit code after Ctrl-C."""
FIXED: Final = "too large to be moved in memory, so what layout adds does not show"
LEAST_PAIRS: Final = LEAST_BLOCKS * QUICK_PAIRS


def main(config: pytest.Config) -> int:
    """Calibrate with the settings of a pytest run, print figures and limits, write `calibration.json`.

    Returns:
        pytest's exit code: 0, or 2 after Ctrl-C.

    Raises:
        SlimError: a setting is unusable, a model cannot be loaded or measured, or the file cannot be written.
    """
    if not config.pluginmanager.hasplugin("terminalreporter"):
        config._do_configure()  # as pytest does for --help: without it there is no terminal to write to
    settings = settings_of(config)
    pairs = _most_pairs(settings)
    limits = settings.limits()
    session = Session(settings)
    watched = watch(config)
    session.progress = watched.line if watched else None
    try:
        _show(config, [(_headline(session), ("bold",)), ("", ())])
        calibrations = []
        for model in dict.fromkeys(settings.models):
            calibrations.append(calibrate(session, model, pairs))
            _show(config, model_lines(calibrations[-1], limits))
        proposal = _proposal(calibrations)
        _show(config, proposal_lines(proposal, calibrations, settings.threads))
        path = _write(session, calibrations, proposal)
        here = config.invocation_params.dir
        near = path.relative_to(here) if path.is_relative_to(here) else path
        _show(config, [("", ()), (f"blocks and figures: {near}", ())])
    except KeyboardInterrupt:
        _show(config, [("", ()), ("interrupted: no limits are proposed", ("yellow",))])
        return INTERRUPTED
    finally:
        session.close()
    return 0


def _most_pairs(settings: Settings) -> int | None:
    """Pairs to measure at most; `None`: as many as a normal run takes at most."""
    option, given = ("--llm-rounds", settings.rounds)
    if given is None:
        option, given = ("--llm-max-rounds", settings.max_rounds)
    if given is not None and given < LEAST_PAIRS:
        raise SettingError(
            f"--llm-calibrate takes at least {LEAST_PAIRS} pairs, got {option} {given}; leave {option} out, "
            "or give more."
        )
    return given


def _headline(session: Session) -> str:
    threads = session.settings.threads
    return f"noise of this machine, {session.device}, {threads} thread{'s' if threads > 1 else ''}"


def _show(config: pytest.Config, lines: Iterable[Line]) -> None:
    writer = config.get_terminal_writer()
    for text, markup in lines:
        writer.line(text, **dict.fromkeys(markup, True))
    writer.flush()


# Measuring --------------------------------------------------------------------------------------------------


def calibrate(session: Session, model: str, pairs: int | None = None) -> Calibration:
    """Measure a model against a copy of itself with all looks, and say how noisy that is.

    Args:
        session: of a run in which nothing else is measured meanwhile.
        model: as in `--llm-model`.
        pairs: to measure at most; `None`: as many as a normal run takes at most.

    Raises:
        SlimError: the model cannot be loaded or measured.
    """
    settings, label = session.settings, model_label(model)
    reference, passage = session.reference(model).module, session.passage(model)
    subject = f"{label} against itself"
    plan = Plan(None, settings.seed, session.device, pairs)
    progress = session.progress(subject) if session.progress else None
    torch.set_num_threads(settings.threads)
    duet = Duet(reference, copy_model(reference), passage, plan, session.meter, subject, progress)
    axes: set[Axis] = {"time", "wall", "energy"} if session.energy_gated else {"time", "wall"}
    seconds: list[float] = []
    began = time.perf_counter()

    def undecided(measured: Measured) -> set[Axis]:
        seconds.append(time.perf_counter() - began)
        return axes

    measured = duet.run(undecided)
    series = tuple(_series(measured))
    return Calibration(
        model=label,
        sampling=measured.sampling,
        seconds=tuple(seconds),
        series=series,
        figures=tuple(noise.figures(one, settings.limits()) for one in series),
        unmeasured="" if len(measured.energy) > 1 else measured.energy_reason,
        notes=measured.notes,
    )


def _series(measured: Measured) -> Iterable[Series]:
    reference, copy, sampling = measured.reference, measured.candidate, measured.sampling
    per_block = sampling.per_block
    fixed = "" if sampling.movable else FIXED
    on_device = measured.clock == "cuda events"
    times = [tally.device_ns if on_device else tally.cpu_ns for tally in (reference, copy)]
    yield Series("time", measured.clock, "measured", log_ratios(*times), per_block, measured.time, fixed)
    walls = log_ratios(reference.wall_ns, copy.wall_ns)
    excluded = _wall_excluded(sampling.wall_over_cpu) or fixed
    yield Series("wall", "perf_counter", "measured", walls, per_block, measured.wall, excluded)
    if len(measured.energy) > 1:
        pairs, method, _ = energy_pairs(reference.energy, copy.energy)
        source = next(reading.source for reading in reference.energy if reading.value is not None)
        # Else each value is a window of many runs.
        size = per_block if len(pairs) != len(measured.energy) else 1
        excluded = _energy_excluded(measured) or fixed
        yield Series("energy", source, method, pairs, size, measured.energy, excluded)


def _wall_excluded(share: float | None) -> str:
    if share is None:
        return "not gated on a GPU"
    if wall_agrees(share):
        return ""
    return f"{units.significant(share)} times process CPU time, so it is not gated"


def _energy_excluded(measured: Measured) -> str:
    if measured.energy_method == "estimated":
        return "estimated, not measured"
    few = len(measured.energy) < LEAST_BLOCKS
    return f"{len(measured.energy)} readings, where it takes {LEAST_BLOCKS}" if few else ""


# Limits -----------------------------------------------------------------------------------------------------


def _proposal(calibrations: Sequence[Calibration]) -> Proposal | None:
    pairs = max(c.sampling.looks[-1] * c.sampling.per_block for c in calibrations)
    return noise.propose([series for c in calibrations for series in c.series], pairs)


def _write(session: Session, calibrations: Sequence[Calibration], proposal: Proposal | None) -> Path:
    """All that was recorded and found, as JSON among the results."""
    settings = session.settings
    content = {
        "schema": SCHEMA,
        "fingerprint": session.fingerprint(),
        "limits": settings.limits(),
        "replays": REPLAYS,
        "gates": noise.GATES,
        "models": calibrations,
        "proposal": proposal,
    }
    path = settings.results / "calibration.json"
    try:
        make_folder(path.parent)
        path.write_text(json.dumps(to_builtins(content), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise SettingError(
            f"{path} cannot be written ({error.strerror}); give another folder with --llm-results."
        ) from None
    return path

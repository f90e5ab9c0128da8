"""All figures of a run as CSV (RFC 4180), a row a candidate.

A number that could not be had is an empty cell, with the reason in the column beside it. Numbers are never rounded,
infinity is `inf`. A text that a spreadsheet would run as a formula gets an apostrophe in front.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any, Final

from pytest_llmslim.readings import no_estimate
from pytest_llmslim.run_records import device_of

if TYPE_CHECKING:
    from pytest_llmslim.evaluation_records import Evaluation
    from pytest_llmslim.readings import Estimate, Reading
    from pytest_llmslim.records import Record, Side
    from pytest_llmslim.run_records import Missed, Origin, Run

Row = dict[str, Any]
"""Cells by the name of their column."""

_RATIOS: Final = ("perplexity", "time", "wall", "energy", "stored_bytes")
_READINGS: Final = ("time_s", "wall_s", "energy_j", "peak_memory")
_DIVERGENCE: Final = ("mean_kl", "low", "high", "median_kl", "kl_999", "rms_dp", "top1")
_FINGERPRINT: Final = "fingerprint "
_EVALUATION: Final = "eval "
_ONE_QUALITY: Final = no_estimate("perplexity is the only measure of quality in opt")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def text(run: Run) -> str:
    """The CSV of a run, with a header row; tests that measured nothing come last.

    Columns are the same in every run that has a record; those of the machine and of evaluations, which differ, stand
    last and sorted.
    """
    rows = [_row(run.origin, record) for record in run.records]
    rows += [_unmeasured(run.origin, missed) for missed in run.unmeasured]
    names = dict.fromkeys(name for row in rows for name in row)
    differing = sorted(name for name in names if name.startswith((_FINGERPRINT, _EVALUATION)))
    file = io.StringIO()
    # An empty run has the first columns.
    fixed = [name for name in names or _origin(run.origin) if name not in set(differing)]
    writer = csv.DictWriter(file, [*fixed, *differing], restval="")
    writer.writeheader()
    writer.writerows({name: _guarded(cell) for name, cell in row.items()} for row in rows)
    return file.getvalue()


def _row(origin: Origin, record: Record) -> Row:
    quality = record.quality if record.quality is not None else _ONE_QUALITY
    estimates = {f"{name}_ratio": getattr(record, name) for name in _RATIOS}
    estimates |= {"quality": quality, "opt": record.opt}
    return {
        **_origin(origin),
        "suite": record.key.suite,
        "test": record.key.test,
        "model": record.key.model,
        "recipe": record.key.recipe,
        "outcome": record.outcome,
        "reason": " ".join(v.sentence for v in record.verdicts if v.outcome != "passed"),
        "device": device_of(record.fingerprint),
        "profile": record.profile.name,
        "alpha": record.profile.alpha,
        "beta": record.profile.beta,
        **{
            name: cell for figure, each in estimates.items() for name, cell in _estimate(figure, each).items()
        },
        **_side("reference", record.reference),
        **_side("candidate", record.candidate),
        "floor": record.floor,
        **_divergence(record),
        "integrity": record.integrity.status,
        "kernels": record.integrity.kernels,
        **_reading("build_time_s", record.build.time_s),
        **_reading("build_energy_j", record.build.energy_j),
        "blocks": len(record.samples.time),
        "energy_policy": record.metering.policy,
        "protocol": record.protocol.name,
        "window": record.protocol.window,
        "stride": record.protocol.stride,
        "tokens": record.protocol.tokens,
        "dtype": record.protocol.dtype,
        "text": record.protocol.text,
        "text_sha256": record.protocol.text_sha256,
        "notes": " ".join(record.notes),
        **{f"{_FINGERPRINT}{name}": value for name, value in record.fingerprint.items()},
        **{name: cell for each in record.evaluations for name, cell in _evaluation(each).items()},
    }


def _unmeasured(origin: Origin, missed: Missed) -> Row:
    return {**_origin(origin), "test": missed.label, "outcome": "unmeasured", "reason": missed.reason}


def _origin(origin: Origin) -> Row:
    return {
        "run": origin.id,
        "started": origin.started,
        "commit": origin.commit,
        "changed": origin.changed,
        "version": origin.version,
    }


def _estimate(name: str, estimate: Estimate) -> Row:
    return {
        name: estimate.value,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
        f"{name}_n": estimate.n,
        **_how(name, estimate),
    }


def _side(name: str, side: Side) -> Row:
    row: Row = {
        f"{name}_perplexity": side.perplexity,
        f"{name}_word_perplexity": side.word_perplexity,
        f"{name}_byte_perplexity": side.byte_perplexity,
        f"{name}_parameters": side.parameters,
        f"{name}_stored_bytes": side.stored_bytes,
        f"{name}_weights_sha256": side.weights_hash,
    }
    for reading in _READINGS:
        row |= _reading(f"{name}_{reading}", getattr(side, reading))
    return row


def _reading(name: str, reading: Reading) -> Row:
    return {name: reading.value, **_how(name, reading)}


def _how(name: str, number: Estimate | Reading) -> Row:
    """How a number was had, or why not."""
    return {
        f"{name}_method": number.method,
        f"{name}_source": number.source,
        f"{name}_reason": number.reason,
    }


def _divergence(record: Record) -> Row:
    """In nats a token; a classifier has none."""
    names = {"low": "mean_kl_low", "high": "mean_kl_high"}
    return {names.get(name, name): getattr(record.divergence, name, None) for name in _DIVERGENCE}


def _evaluation(found: Evaluation) -> Row:
    """The metric of an evaluation and its further figures."""
    row: Row = {}
    if found.metric:
        name = f"{_EVALUATION}{found.name} {found.metric}"
        row = {
            f"{name} reference": found.reference,
            f"{name} candidate": found.candidate,
            **_estimate(f"{name} ratio", found.ratio),
        }
    for figure in found.figures:
        unit = f" {figure.unit}" if figure.unit else ""
        name = f"{_EVALUATION}{found.name} {figure.name}{unit}"
        row |= {f"{name} reference": figure.reference, f"{name} candidate": figure.candidate}
    return row


def _guarded(cell: object) -> object:
    """A cell that a spreadsheet shows and does not run."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell

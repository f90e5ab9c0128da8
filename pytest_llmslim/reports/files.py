"""What a run leaves in `--llm-results`: `results.jsonl` (one record a line) and `summary.json` (this)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_llmslim.breakeven import energy_break_even, grams_per_million_tokens, time_break_even
from pytest_llmslim.encoding import to_builtins
from pytest_llmslim.records import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_llmslim.records import Evaluation, Record


def make_folder(folder: Path) -> None:
    """Make the folder of the results, which git is to pass over.

    Raises:
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")


def write(folder: Path, name: str, text: str, *, append: bool = False) -> None:
    """Write a file of the results: whole or not at all, or `append` to it.

    Raises:
        OSError: it cannot be written.
    """
    make_folder(folder)
    path = folder / name
    if append:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        return
    beside = folder / f".{name}.part"
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def summary(records: Sequence[Record], unmeasured: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The run in one object: a short row per record, and what was not measured with the reason."""
    return {
        "schema": SCHEMA,
        "outcomes": {
            outcome: sum(record.outcome == outcome for record in records)
            for outcome in sorted({record.outcome for record in records})
        },
        "fingerprint": to_builtins(records[0].fingerprint) if records else {},
        "rows": [row(record) for record in records],
        "unmeasured": [{"label": label, "reason": reason} for label, reason in unmeasured],
    }


def figures(record: Record) -> dict[str, object]:
    """The figures that fit where there is little room: JUnit properties, pytest-benchmark's extra_info."""
    return {
        "perplexity": record.candidate.perplexity,
        "perplexity_ratio": record.perplexity.value,
        "time_ratio": record.time.value,
        "energy_ratio": record.energy.value,
        "energy_method": record.energy.method,
        "bytes_ratio": record.stored_bytes.value,
        "opt": record.opt.value,
        **{f"{each.name} {each.metric}": each.candidate for each in record.evaluations if each.metric},
        "outcome": record.outcome,
    }


def row(record: Record) -> dict[str, Any]:
    """The figures of one record; a ratio is an object with value, interval and how it was had."""
    row: dict[str, Any] = to_builtins(
        {
            "suite": record.key.suite,
            "test": record.key.test,
            "model": record.key.model,
            "recipe": record.key.recipe,
            "perplexity": record.candidate.perplexity,
            "reference_perplexity": record.reference.perplexity,
            "floor": record.floor,
            **_divergence(record),
            "profile": record.profile.name,
            "outcome": record.outcome,
            "integrity": record.integrity.status,
            "sentences": [verdict.sentence for verdict in record.verdicts],
            "build": {"time_s": record.build.time_s, "energy_j": record.build.energy_j},
            "break_even": {"time": time_break_even(record), "energy": energy_break_even(record)},
            "sampling": {"blocks": len(record.samples.time), **to_builtins(record.sampling)},
            "metering": record.metering,
            "carbon": _carbon(record),
            "evaluations": [_evaluation(each) for each in record.evaluations],
        }
    )
    for name in ("perplexity", "time", "wall", "energy", "stored_bytes", "opt"):
        estimate = getattr(record, name)
        row[f"{name}_ratio" if name != "opt" else "opt"] = to_builtins(
            {
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "method": estimate.method,
                "source": estimate.source,
                "reason": estimate.reason,
            }
        )
    return row


def _divergence(record: Record) -> dict[str, float | None]:
    """By its names here; a classifier has none."""
    names = {"mean_kl_low": "low", "mean_kl_high": "high"}
    keys = ("mean_kl", *names, "median_kl", "kl_999", "rms_dp", "top1")
    return {key: getattr(record.divergence, names.get(key, key), None) for key in keys}


def _evaluation(found: Evaluation) -> dict[str, Any]:
    """One evaluation without its questions, which are in results.jsonl."""
    row: dict[str, Any] = to_builtins(replace(found, worst=(), reference_right="", candidate_right=""))
    for name in ("worst", "reference_right", "candidate_right"):
        del row[name]
    return row


def _carbon(record: Record) -> dict[str, Any] | None:
    """Grams of CO2 equivalent per million tokens, always an estimate; `None` without a country or joules."""
    if record.carbon is None:
        return None
    sides = {"reference": record.reference, "candidate": record.candidate}
    energy = {name: side.energy_j for name, side in sides.items()}
    return {
        **to_builtins(record.carbon),
        "method": "estimated" if record.energy.known else record.energy.method,
        "reason": record.energy.reason,
        **{
            f"{name}_g_per_million_tokens": grams_per_million_tokens(reading, record.protocol, record.carbon)
            if record.energy.known
            else None
            for name, reading in energy.items()
        },
    }

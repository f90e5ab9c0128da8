"""What a run leaves in `--llm-results`: `results.jsonl` (one record a line) and `summary.json` (this)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmslim.encoding import to_builtins
from pytest_llmslim.records import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.records import Record


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
        "bytes_ratio": record.stored_bytes.value,
        "opt": record.opt.value,
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
            "mean_kl": record.divergence.mean_kl,
            "top1": record.divergence.top1,
            "profile": record.profile.name,
            "outcome": record.outcome,
            "integrity": record.integrity.status,
            "sentences": [verdict.sentence for verdict in record.verdicts],
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

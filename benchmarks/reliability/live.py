"""The real suite against its own baseline, many times, each in a fresh process: whatever is red is a false alarm."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_llmslim.encoding import from_builtins
from pytest_llmslim.gate import NOISY
from pytest_llmslim.records import Record
from reliability.busy import busy_loops
from reliability.goals import DECISIONS, RED, Goal
from reliability.tables import Count

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

ROOT: Final = Path(__file__).parents[2]
PROCESSES: Final = 20
"""Fresh processes in which the identity recipe may not fail."""


@dataclass(frozen=True)
class Run:
    """One run of the suite, as a line of the log.

    Args:
        model: as given to `--llm-model`.
        recipes: as given to `--llm-recipe`.
        busy: loops beside it.
        exit: pytest's exit status: 0 green, 1 red.
        seconds: that it took.
        verdicts: recipe, axis, against what, and outcome of each.
        ratios: time ratio of each recipe.
        pairs: timed pairs of each recipe.
        red: the sentences that failed.
    """

    model: str
    recipes: list[str]
    busy: int
    exit: int
    seconds: float
    verdicts: list[list[str]] = field(default_factory=list)
    ratios: dict[str, float | None] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    red: list[str] = field(default_factory=list)


class LiveError(Exception):
    """A run that is neither green nor red, or a log that does not fit."""


def main(options: argparse.Namespace) -> int:
    """Run until there are `options.live` runs in the log, then print the counts and goals."""
    folder = options.folder / f"{Path(options.model).name.replace(':', '-')}-busy{options.busy}"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "runs.jsonl"
    try:
        done = read(log, options.model, options.recipes, options.busy)
        print(f"{len(done)} runs in {log}")
        with busy_loops(options.busy):
            while len(done) < options.live:
                run = _run(folder, options)
                done.append(run)
                with log.open("a") as file:
                    file.write(json.dumps(asdict(run), sort_keys=True) + "\n")
                print(f"{len(done)}/{options.live}", line(run), flush=True)
    except LiveError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted; the same command goes on from {log}.", file=sys.stderr)
        return 130
    goals = check(done)
    print(report(done))
    print("\n".join(map(str, goals)))
    return int(options.check and any(goal.met is False for goal in goals))


def read(log: Path, model: str, recipes: Sequence[str], busy: int) -> list[Run]:
    """The runs of a log.

    Raises:
        LiveError: they were made with other settings.
    """
    found = [Run(**json.loads(text)) for text in log.read_text().splitlines()] if log.exists() else []
    for run in found:
        if (run.model, run.recipes, run.busy) != (model, list(recipes), busy):
            raise LiveError(
                f"{log} holds runs of {','.join(run.recipes)} on {run.model} with {run.busy} busy loops; "
                f"give another --folder."
            )
    return found


def command(folder: Path, model: str, recipes: Iterable[str]) -> list[str]:
    """The suite against the baselines in a folder; `-p no:benchmark`, since its figures are not needed."""
    made = [sys.executable, "-m", "pytest", "suites/test_standalone.py", "-q", "-p", "no:cacheprovider"]
    made += ["-p", "no:benchmark", "--llm-model", model]
    made += [part for recipe in recipes for part in ("--llm-recipe", recipe)]
    return [*made, "--llm-baseline", str(folder / "baselines"), "--llm-results", str(folder / "results")]


def _run(folder: Path, options: argparse.Namespace) -> Run:
    """One run; before the first, one that writes the baselines."""
    base = command(folder.absolute(), options.model, options.recipes)
    if not (folder / "baselines").exists():
        wrote = subprocess.run([*base, "--llm-update"], cwd=ROOT, capture_output=True, text=True, check=False)
        if wrote.returncode:
            raise LiveError(
                f"The run that writes the baselines failed:\n{wrote.stdout[-2000:]}{wrote.stderr[-2000:]}"
            )
    results = folder / "results" / "results.jsonl"
    results.unlink(missing_ok=True)
    start = time.perf_counter()
    ended = subprocess.run(base, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if ended.returncode not in (0, 1) or not results.exists():
        raise LiveError(
            f"pytest ended with {ended.returncode}:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}"
        )
    rows = [json.loads(text) for text in results.read_text().splitlines()]
    records: list[Record] = [from_builtins(Record, row) for row in rows]
    if len(records) != len(options.recipes):
        raise LiveError(
            f"pytest measured {len(records)} of {len(options.recipes)} recipes:\n{ended.stdout[-2000:]}"
        )
    return Run(
        options.model, list(options.recipes), options.busy, ended.returncode, seconds, **_facts(records)
    )


def _facts(records: Sequence[Record]) -> dict[str, Any]:
    return {
        "verdicts": [[r.key.recipe, v.axis, v.against, v.outcome] for r in records for v in r.verdicts],
        "ratios": {r.key.recipe: r.time.value for r in records},
        "pairs": {r.key.recipe: r.time.n * r.sampling.per_block for r in records},
        "red": [v.sentence for r in records for v in r.verdicts if v.outcome == "failed"],
    }


def line(run: Run) -> str:
    """A run in one line."""
    ratios = ", ".join(f"{recipe} {ratio:.3f}" for recipe, ratio in run.ratios.items() if ratio)
    red = f"; {' '.join(run.red)}" if run.red else ""
    return f"{'red' if run.exit else 'green'} in {run.seconds:.0f} s: {ratios}{red}"


def report(runs: Sequence[Run]) -> str:
    """Verdicts by axis, counted over the runs."""
    axes: dict[tuple[str, str], Counter[str]] = {}
    for _, axis, against, outcome in (verdict for run in runs for verdict in run.verdicts):
        axes.setdefault((axis, against), Counter())[outcome] += 1
    outcomes = ("failed", "passed", "inconclusive", "not comparable", "new")
    rows = ["| axis | against | " + " | ".join(outcomes) + " |", "|" + "---|" * 7]
    rows += [
        f"| {axis} | {against} | " + " | ".join(str(counts[outcome]) for outcome in outcomes) + " |"
        for (axis, against), counts in axes.items()
    ]
    seconds = sum(run.seconds for run in runs) / max(1, len(runs))
    return "\n".join([f"\n{len(runs)} runs, {seconds:.0f} s each on average.\n", *rows, ""])


def check(runs: Sequence[Run]) -> list[Goal]:
    """R1: no false red run, no false alarm of a noisy gate. R5: equal models in fresh processes never fail."""
    red = Count(sum(run.exit != 0 for run in runs), len(runs))
    decided = [
        v
        for run in runs
        for v in run.verdicts
        if v[1] in NOISY and v[3] in ("failed", "passed", "inconclusive")
    ]
    gates = Count(sum(v[3] == "failed" for v in decided), len(decided))
    equal = Count(
        sum(any(v[0] == "identity" and v[3] == "failed" for v in run.verdicts) for run in runs),
        sum("identity" in run.recipes for run in runs),
    )
    return [
        Goal("R1", "the real suite on unchanged models: at most 1 % of runs red", red.share <= RED, str(red)),
        Goal(
            "R1",
            f"its noisy gates: none failed in at least {DECISIONS} decisions",
            _none(gates, DECISIONS),
            str(gates),
        ),
        Goal(
            "R5",
            f"equal models freshly loaded: none failed in at least {PROCESSES} processes",
            _none(equal, PROCESSES),
            str(equal),
        ),
    ]


def _none(count: Count, least: int) -> bool | None:
    """Whether nothing failed, once there are enough of them to say so."""
    if count.hits:
        return False
    return True if count.trials >= least else None

"""What the gate finds and what it cries wolf about, beside two common rules on the same data.

    python benchmarks/gate_reliability.py --check

replays simulated noise and recordings of real noise, under A/A and a true +5, +10 and +20 %, through the gate's
own code, through pytest-benchmark's `mean:5%` against a stored run, and through Mann-Whitney at 0.05 against a
stored run. It prints Markdown tables of counts with exact 95 % intervals, and the goals; with `--check` it exits
with 1 when one is not met.

    python benchmarks/gate_reliability.py --live 100 --busy 1 --folder runs

runs the real suite against its own baseline that many times, and can be interrupted and resumed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reliability import goals, live, tables
from reliability.noise import SIMULATED, TRUTHS, Stream, recorded, simulate
from reliability.rules import gates_of, runs

from pytest_llmslim.conditions import WALL_AGREES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reliability.noise import Recorded
    from reliability.rules import Decision

ROOT = Path(__file__).parents[1]
GIVEN = ROOT.parent / "shared" / "noise" / "blocks"
FRESH = Path(__file__).parent / "recordings"
GATES = 20


class Size(NamedTuple):
    """How much is simulated by noise: decisions by truth, and runs of 20 gates where nothing is slower or all is."""

    decisions: int
    equal_runs: int
    slower_runs: int


FULL, QUICK = Size(1000, 400, 25), Size(25, 4, 1)
"""The full replay takes about two minutes of one core."""


class Replay(NamedTuple):
    """All that was replayed.

    Args:
        streams: the recordings.
        cells: decisions of single tests.
        loaded: those on stretches with other load, against a baseline of a quiet machine.
        family_cells: decisions of tests in runs of 20 gates.
        families: such runs under A/A.
    """

    streams: list[Stream]
    cells: list[tables.Cell]
    loaded: list[tables.Cell]
    family_cells: list[tables.Cell]
    families: dict[str, list[list[Decision]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and the goals; 1 when `--check` finds one that is not met."""
    options = parser().parse_args(arguments)
    if options.live:
        return live.main(options)
    streams = []
    folders: dict[Recorded, Path] = {"given": options.noise, "fresh": options.recordings}
    for kind, folder in folders.items():
        found = recorded(folder, kind)
        streams += found
        if not found:
            print(f"No {kind} recordings: {folder} holds no .npz file; name their folder.\n", file=sys.stderr)
    done = replay(streams, QUICK if options.quick else FULL, options.seed)
    found_goals = goals.check(done.streams, done.cells, done.loaded, done.families)
    text = "\n".join([report(done), "\n## Goals\n", *map(str, found_goals)])
    print(text)
    if options.docs:
        options.docs.write_text(filled(options.docs.read_text(), text))
    return int(options.check and any(goal.met is False for goal in found_goals))


def filled(page: str, text: str) -> str:
    """A page whose marks `<!-- from the bench: NAME -->` to `<!-- end -->` hold the sections of that name."""
    sections = dict(part.split("\n", 1) for part in re.split(r"^## ", text, flags=re.MULTILINE) if part)

    def section(mark: re.Match[str]) -> str:
        return f"{mark[1]}\n\n{sections[mark[2]].strip()}\n\n<!-- end -->"

    return re.sub(r"(<!-- from the bench: (.*?) -->).*?<!-- end -->", section, page, flags=re.DOTALL)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--noise", type=Path, default=GIVEN, help="folder of recordings given from outside")
    made.add_argument("--recordings", type=Path, default=FRESH, help="folder of what record_noise.py wrote")
    made.add_argument("--quick", action="store_true", help="few simulated decisions, to see that it works")
    made.add_argument("--seed", type=int, default=0, help="of the simulated noise")
    made.add_argument("--check", action="store_true", help="exit with 1 when a goal is not met")
    made.add_argument(
        "--docs", type=Path, metavar="PAGE", help="write the tables into a page that has marks for them"
    )
    made.add_argument("--live", type=int, metavar="RUNS", help="run the real suite so often, in all")
    made.add_argument("--busy", type=int, default=0, metavar="N", help="busy loops beside the live runs")
    made.add_argument("--model", default="embedded:gpt2", help="of the live runs")
    made.add_argument(
        "--recipes",
        type=lambda text: re.split(r",(?![^(]*\))", text),
        default=["identity", "int8", "ah90"],
        help="of the live runs, separated by commas",
    )
    made.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "llmslim-live",
        help="where live runs keep baselines and their log, so that they can be resumed",
    )
    return made


def replay(streams: list[Stream], size: Size, seed: int) -> Replay:
    """Send everything through all rules."""
    cells, family_cells, families = [], [], {}
    for kind, noise, truth, count in _noises(streams):

        def those(
            amount: int,
            kind: str = kind,
            noise: str = noise,
            truth: float = truth,
        ) -> Iterator[Stream]:
            if kind == "simulated":
                return simulate(noise, truth, amount, seed)
            return (s for s in streams if (s.kind, s.noise, s.truth) == (kind, noise, truth))

        single = [run[0] for run in runs(those(size.decisions), 1)]
        cells.append(tables.Cell(kind, noise, truth, single))
        amount = size.slower_runs if truth else size.equal_runs
        found = list(runs(those(amount * GATES), GATES // count))
        name = noise if kind == "simulated" else f"{kind}: {noise}"
        family_cells.append(tables.Cell(kind, name, truth, [d for run in found for d in run]))
        if truth == 0:
            families[name] = found
    families |= _together(streams)
    return Replay(streams, cells, _loaded(streams), family_cells, families)


def _loaded(streams: Sequence[Stream]) -> list[tables.Cell]:
    """What was measured beside so much load that wall time is not gated, by kind and truth."""
    kinds: dict[tuple[str, float], list[Decision]] = defaultdict(list)
    for stream in streams:
        found = (run[0] for run in runs([stream], 1, quiet=True))
        kinds[stream.kind, stream.truth] += [d for d in found if d.load and d.load > WALL_AGREES]
    return [
        tables.Cell(kind, f"{kind} recordings", truth, found)
        for (kind, truth), found in sorted(
            kinds.items(), key=lambda item: (item[0][0] == "fresh", item[0][1])
        )
        if found
    ]


def _noises(streams: Sequence[Stream]) -> Iterator[tuple[str, str, float, int]]:
    """Kind, noise, truth and gates a test of every row."""
    yield from (("simulated", name, truth, 1) for name in SIMULATED for truth in TRUTHS)
    yield from dict.fromkeys((s.kind, s.noise, s.truth, gates_of(s)) for s in streams)


def _together(streams: Sequence[Stream]) -> dict[str, list[list[Decision]]]:
    """Runs of 20 gates over all workloads of a kind: on one alone there are few."""
    kinds = defaultdict(list)
    for stream in streams:
        if stream.truth == 0 and not stream.busy:
            kinds[stream.kind].append(stream)
    return {
        f"all {kind} recordings": list(runs(found, GATES // gates_of(found[0])))
        for kind, found in kinds.items()
    }


def summary(cells: Sequence[tables.Cell], streams: Sequence[Stream]) -> list[tables.Cell]:
    """Equal models under each simulated noise, and every truth over all recordings of a kind."""
    found = [
        tables.Cell(cell.kind, f"simulated {cell.noise}", cell.truth, cell.decisions)
        for cell in cells
        if cell.kind == "simulated" and cell.truth == 0
    ]
    busy = {stream.noise for stream in streams if stream.busy}
    for kind in ("given", "fresh"):
        those = [cell for cell in cells if cell.kind == kind and cell.noise not in busy]
        found += tables.pooled(those, f"{kind} recordings")
    return found


def report(done: Replay) -> str:
    """All tables, the one that sums up first."""
    parts = ["## Summary\n", tables.summary_table(summary(done.cells, done.streams)), ""]
    for kind in ("simulated", "given", "fresh"):
        cells = [cell for cell in done.cells if cell.kind == kind]
        if not cells:
            continue
        quiet = {stream.noise for stream in done.streams if stream.kind == kind and not stream.busy}
        if len(quiet) > 1:
            cells += tables.pooled([cell for cell in cells if cell.noise in quiet], "all")
        parts += [f"## {kind.capitalize()} noise: one test\n", tables.gate_table(cells), ""]
        parts += [f"## {kind.capitalize()} noise: called slower by each rule\n", tables.rule_table(cells), ""]
    if done.loaded:
        parts += [
            "## Beside other load, against a baseline of a quiet machine\n",
            tables.gate_table(done.loaded),
            "",
        ]
    parts += [
        f"## Nothing slower, {GATES} gates: red runs\n",
        tables.markdown(
            tables.FAMILY_COLUMNS,
            [tables.family_row(noise, found) for noise, found in done.families.items() if found],
        ),
        "",
        f"## One test among {GATES} gates\n",
        tables.gate_table(cell for cell in done.family_cells if cell.decisions),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())

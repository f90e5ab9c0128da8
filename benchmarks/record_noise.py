"""Records real noise through the plugin's own measuring code, for `gate_reliability.py` to replay.

    python benchmarks/record_noise.py --out FOLDER

times an embedded model against a copy of itself that does exactly 0, 5, 10 or 20 % more work: both run the model
on the same short window a whole number of times, the reference 20 times and the copy 21 at +5 %. Each session is
a fresh process and leaves one `.npz`: `T[block, pair, truth, reference or candidate, wall or CPU]` in ticks, and
`meta` in JSON. Sessions that are there already are not recorded again. `--beside N` runs N busy loops beside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from reliability.busy import busy_loops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.pairs import Measured

TICK_S: Final = 1e-6
WORK: Final = {0.0: (10, 10), 0.05: (20, 21), 0.10: (10, 11), 0.20: (10, 12)}
"""How often reference and candidate run the model: the fewest whole numbers of each ratio."""


class Kind(NamedTuple):
    """Sessions of one kind."""

    truth: float
    sessions: int
    pairs: int
    beside: int = 0

    def name(self, session: int) -> str:
        """File of a session."""
        beside = f"_beside{self.beside}" if self.beside else ""
        return f"gpt2_{100 * self.truth:02.0f}{beside}_s{session}.npz"


PLAN: Final = (
    Kind(0.0, 5, 1120),
    Kind(0.05, 2, 800),
    Kind(0.10, 2, 640),
    Kind(0.20, 3, 1600),
    Kind(0.10, 3, 160, 2),
)
"""About thirteen minutes of one core, which give some 140 decisions on A/A and 85 on +20 %."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Record what is missing of the plan, each session in a process of its own."""
    options = parser().parse_args(arguments)
    if options.one:
        record(options.one, options)
        return 0
    kinds = PLAN if options.truth is None else [_asked(options)]
    options.out.mkdir(parents=True, exist_ok=True)
    # One session of each kind in turn, so that no kind has an hour of the day to itself.
    for session in range(1, 1 + max(kind.sessions for kind in kinds)):
        for kind in kinds:
            path = options.out / kind.name(session)
            if session <= kind.sessions and not path.exists():
                start = time.perf_counter()
                with busy_loops(kind.beside):
                    _process(path, kind, session, options)
                print(f"{path}: {kind.pairs} pairs in {time.perf_counter() - start:.0f} s", flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    out = Path(tempfile.gettempdir()) / "llmslim-noise"
    made.add_argument("--out", type=Path, default=out, help=f"folder of the recordings; {out}")
    made.add_argument("--model", default="embedded:gpt2")
    made.add_argument("--window", type=int, default=16, metavar="TOKENS", help="tokens of a run")
    made.add_argument("--truth", type=float, choices=WORK, help="record this slowdown only, as a fraction")
    made.add_argument("--sessions", type=int, default=1, help="of that one")
    made.add_argument("--pairs", type=int, default=160, help="in each of its sessions")
    made.add_argument("--beside", type=int, default=0, metavar="N", help="busy loops beside it")
    made.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    made.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    return made


def _asked(options: argparse.Namespace) -> Kind:
    return Kind(options.truth, options.sessions, options.pairs, options.beside)


def _process(path: Path, kind: Kind, seed: int, options: argparse.Namespace) -> None:
    command = [sys.executable, str(Path(__file__)), "--one", str(path), "--truth", str(kind.truth)]
    command += ["--pairs", str(kind.pairs), "--beside", str(kind.beside), "--seed", str(seed)]
    command += ["--model", options.model, "--window", str(options.window)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def record(path: Path, options: argparse.Namespace) -> None:
    """One session, in this process."""
    start, load = time.time(), os.getloadavg()
    work = WORK[options.truth]
    measured = measure(options.model, work, options.window, options.pairs, options.seed)
    meta = {
        "wl": "gpt2" if options.model == "embedded:gpt2" else options.model.replace(":", "-"),
        "K": work[0],
        "truths": [options.truth],
        "busy": options.beside,
        "tick_s": TICK_S,
        "window": options.window,
        "start": start,
        "load": load,
        "replaced": measured.sampling.replaced,
        "disturbed": measured.sampling.disturbed,
        "disturbances": measured.sampling.disturbances,
    }
    # Under another name first, so that a session that was stopped leaves nothing that looks whole.
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, T=ticks(measured), meta=np.array(json.dumps(meta)))
    part.rename(path)


def ticks(measured: Measured) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The times of all kept pairs in microseconds, of shape (blocks, pairs, 1, who, wall or CPU)."""
    sides = [(tally.wall_ns, tally.cpu_ns) for tally in (measured.reference, measured.candidate)]
    times = np.array(sides, dtype=np.float64) * 1e-9 / TICK_S  # who, clock, pair
    blocks = times.transpose(2, 0, 1).reshape(-1, measured.sampling.per_block, 1, 2, 2)
    return np.rint(blocks).astype(np.uint32)


def measure(model: str, work: tuple[int, int], window: int, pairs: int, seed: int) -> Measured:
    """Time a model against a copy of itself, each run as often as `work` says."""
    import torch

    from pytest_llmslim.evals.text import cut, grammar_text
    from pytest_llmslim.measure import Duet, Plan
    from pytest_llmslim.meters.null import NullMeter
    from pytest_llmslim.models.loading import load_model
    from pytest_llmslim.models.storage import copy_model

    class Repeated(torch.nn.Module):
        """A model that does its work several times."""

        def __init__(self, inner: torch.nn.Module, times: int) -> None:
            super().__init__()
            self.inner, self.times = inner, times

        def forward(self, **inputs: Any) -> Any:  # noqa: ANN401  # whatever the model returns
            for _ in range(self.times):
                output = self.inner(**inputs)
            return output

    torch.set_num_threads(1)
    loaded = load_model(model)
    shape: dict[str, Any] = {
        "window": window,
        "stride": None,
        "bos": "auto",
        "dtype": "float32",
        "longest": None,
    }
    passage = cut(grammar_text(2), loaded.tokenizer, tokens=16 * (window - 1), **shape)
    models = [loaded.module, copy_model(loaded.module)]
    reference, candidate = (Repeated(inner, times).eval() for inner, times in zip(models, work, strict=True))
    plan = Plan(rounds=pairs, seed=seed, device="cpu")
    meter = NullMeter("only time is recorded")
    return Duet(reference, candidate, passage, plan, meter, "noise").run()


if __name__ == "__main__":
    sys.exit(main())

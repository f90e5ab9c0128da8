"""What measuring costs: time outside of forward passes, an empty window per source, codecarbon's share of a core.

At least 95 % of the measured phase is promised to be inside forward passes. The share is that of a recipe on an
embedded model with this machine's energy meter. It leaves out loading and compressing, and holds moving weights,
scoring logits and reading meters. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import gc
import time
from typing import TYPE_CHECKING

import torch

from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.evals.text import cut, grammar_text
from pytest_llmslim.measure import Duet, Plan
from pytest_llmslim.meters.carbon import open_codecarbon
from pytest_llmslim.meters.clock import Stopwatch
from pytest_llmslim.meters.disturbance import Watch
from pytest_llmslim.meters.ladder import choose_energy_meter
from pytest_llmslim.meters.memory import PeakMemory
from pytest_llmslim.meters.nvml import open_counter, open_power
from pytest_llmslim.meters.rapl import open_rapl
from pytest_llmslim.methods import Context
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.storage import copy_model
from pytest_llmslim.recipe import instantiate, parse
from pytest_llmslim.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_llmslim.meters import Meter

METERS: dict[str, Callable[[], Meter]] = {
    "codecarbon": open_codecarbon,
    "RAPL": open_rapl,
    "NVML energy counter": open_counter,
    "NVML power": open_power,
}


def main() -> None:
    """Measure everything once and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded:gpt2")
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--rounds", type=int, default=80, help="pairs for the share in forward passes")
    parser.add_argument("--windows", type=int, default=2000, help="empty windows per source")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long codecarbon is left running")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(forward_share(arguments.model, arguments.recipe, arguments.rounds))
    print("\n| an empty window of | min µs | median µs | p99 µs |\n|---|---|---|---|")
    absent: list[str] = []
    for line in window_rows(arguments.windows, absent):
        print(line)
    print("", *absent, sep="\n")
    print("\n| codecarbon | share of a core |\n|---|---|")
    for line in codecarbon_rows(arguments.seconds):
        print(line)


def forward_share(model: str, recipe: str, rounds: int) -> str:
    """One measurement, as a test makes it."""
    reference = load_model(model)
    passage = cut(
        grammar_text(33),
        reference.tokenizer,
        tokens=8160,
        window=256,
        stride=None,
        bos="auto",
        dtype="float32",
        longest=None,
    )
    registry = Registry(BUILTIN_METHODS)
    context = Context(passage.calibration, 0, "cpu", reference.family, model)
    candidate = copy_model(reference.module)
    for step in parse(recipe, registry).steps:
        candidate = instantiate(step, registry).compress(candidate, context).module
    meter = choose_energy_meter("cpu")
    plan = Plan(rounds=rounds, seed=0, device="cpu")
    try:
        measured = Duet(reference.module, candidate, passage, plan, meter, recipe).run()
    finally:
        meter.close()
    return (
        f"{recipe} on {model}: {measured.pairs} pairs, energy by {meter.source}, "
        f"{100 * measured.busy:.1f} % of the measured phase in forward passes"
    )


# Windows ----------------------------------------------------------------------------------------------------


def window_rows(windows: int, absent: list[str]) -> Iterator[str]:
    """One line a source; `absent` gets a sentence on each that is not there."""
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        yield row(f"the stopwatch ({device})", costs(watch_time(device), windows))
        watch = Watch(device)
        yield row(
            f"the watch over a pair ({device}: {', '.join(watch.watched)})", costs(watch_pair(watch), windows)
        )
        watch.close()
        yield row(f"peak memory ({device})", costs(whole_window(PeakMemory(device)), windows))
    for name, opened in METERS.items():
        try:
            meter = opened()
        except Exception as error:
            absent.append(f"{name}: not here. {error}")
            continue
        yield row(name, costs(whole_window(meter), windows))
        meter.close()


def watch_time(device: str) -> Callable[[], object]:
    """A window in which nothing is run."""
    stopwatch = Stopwatch(device)

    def window() -> None:
        stopwatch.start()
        stopwatch.stop()

    return window


def watch_pair(watch: Watch) -> Callable[[], object]:
    """What a pair of runs pays for being watched."""
    stopwatch = Stopwatch("cpu")
    stopwatch.start()
    ticks = stopwatch.stop()

    def pair() -> None:
        watch.begin()
        watch.lap(ticks)
        watch.lap(ticks)
        watch.end()

    return pair


def whole_window(meter: Meter | PeakMemory) -> Callable[[], object]:
    """The two readings of a meter, and the judgement on them."""

    def window() -> None:
        meter.start()
        meter.stop()

    return window


def costs(window: Callable[[], object], count: int) -> list[int]:
    """Nanoseconds of each of `count` windows, in ascending order, after some that do not count."""
    found = []
    gc.collect()
    gc.disable()
    for _ in range(count + count // 10):
        began = time.perf_counter_ns()
        window()
        found.append(time.perf_counter_ns() - began)
    gc.enable()
    return sorted(found[-count:])


def row(name: str, found: list[int]) -> str:
    """A line of the table, in microseconds."""
    chosen = (found[0], found[len(found) // 2], found[len(found) * 99 // 100])
    return f"| {name} | " + " | ".join(f"{nanoseconds / 1000:.1f}" for nanoseconds in chosen) + " |"


# A core -----------------------------------------------------------------------------------------------------


def codecarbon_rows(seconds: float) -> Iterator[str]:
    """CPU time of this process while it sleeps: without a meter, with an open one, and inside a window."""
    yield f"| not there | {idle_share(seconds)} |"
    try:
        meter = open_codecarbon()
    except Exception as error:
        yield f"| not there: {error} | - |"
        return
    yield f"| open, between windows | {idle_share(seconds)} |"
    meter.start()
    yield f"| inside a window | {idle_share(seconds)} |"
    meter.close()


def idle_share(seconds: float) -> str:
    """Process CPU time over a sleep."""
    began = time.process_time()
    time.sleep(seconds)
    return f"{100 * (time.process_time() - began) / seconds:.3f} %"


if __name__ == "__main__":
    main()

"""How much of the measured phase is spent inside the models' forward passes: the promise is at least 95 %.

Measures `int8` on an embedded model with this machine's energy meter, and prints the share, which leaves
out loading and compressing but holds moving weights, scoring logits and reading meters.
"""

from __future__ import annotations

import argparse

import torch

from pytest_llmslim.evals.text import cut, grammar_text
from pytest_llmslim.measure import Duet, Plan
from pytest_llmslim.meters.ladder import choose_energy_meter
from pytest_llmslim.methods import Context
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.storage import copy_model
from pytest_llmslim.recipe import instantiate, parse
from pytest_llmslim.registry import BUILTIN_METHODS, Registry


def main() -> None:
    """Measure once and print the share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded:gpt2")
    parser.add_argument("--recipe", default="int8")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reference = load_model(arguments.model)
    source = grammar_text(33)
    passage = cut(
        source,
        reference.tokenizer,
        tokens=8160,
        window=256,
        stride=None,
        bos="auto",
        dtype="float32",
        longest=None,
    )
    registry = Registry(BUILTIN_METHODS)
    context = Context(passage.calibration, 0, "cpu", reference.family, arguments.model)
    candidate = copy_model(reference.module)
    for step in parse(arguments.recipe, registry).steps:
        candidate = instantiate(step, registry).compress(candidate, context).module
    meter = choose_energy_meter("cpu")
    plan = Plan(rounds=None, seed=0, device="cpu")
    measured = Duet(reference.module, candidate, passage, plan, meter, arguments.recipe).run()
    meter.close()
    print(
        f"{arguments.recipe} on {arguments.model}: {measured.pairs} pairs, energy by {meter.source}, "
        f"{100 * measured.busy:.1f} % of the measured phase in forward passes"
    )


if __name__ == "__main__":
    main()

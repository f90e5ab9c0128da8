"""Making candidates: what a recipe costs, and sharing a long first step."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from tiny_models import tiny_model, tiny_tokens

from pytest_llmslim import candidates
from pytest_llmslim.candidates import Spent, Workshop
from pytest_llmslim.errors import CompressionError
from pytest_llmslim.meters.null import NullMeter
from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import weights_hash
from pytest_llmslim.recipe import Recipe, steps_of
from pytest_llmslim.records import Reading, unmeasured


@dataclass
class Scale:
    """Multiplies every linear; counts how often it was asked to."""

    factor: float
    resumed: str = ""
    calls: list[int] = field(default_factory=list)

    def compress(self, module, context):
        self.calls.append(1)
        for linear in Blocks(module).linears().values():
            linear.weight.data.mul_(self.factor)
        return Applied(module, f"scale: by {self.factor}", resumed=self.resumed)


@pytest.fixture
def reference():
    return tiny_model("llama")


@pytest.fixture
def said():
    return []


@pytest.fixture
def build(reference, said):
    """Builds a recipe of the given methods in a workshop that lasts for the test."""
    workshop = Workshop("tiny", "tiny", "cpu", NullMeter("none in this test"))
    context = Context(tiny_tokens(2, 8), 0, "cpu", "llama", "tiny", reference, progress=said.append)

    def build(text, *methods):
        return workshop.build(Recipe(steps_of(text), text), methods, reference, context)

    return build


@pytest.fixture
def keep_all(monkeypatch):
    monkeypatch.setattr(candidates, "WORTH_KEEPING_S", 0.0)


def test_a_first_step_that_took_long_is_taken_once(build, keep_all):
    """Recipes that begin alike share the first step, and what each makes is as if it had gone all the way."""
    first, second, third = Scale(2.0), Scale(3.0), Scale(5.0)
    alone = build("a", first)
    pair = build("a+b", first, second)
    other = build("a+c", first, third)

    assert [1, 1, 1] == [len(method.calls) for method in (first, second, third)]
    weights = [Blocks(made.module).linears() for made in (alone, pair, other)]
    for name, linear in weights[0].items():
        assert torch.equal(3 * linear.weight, weights[1][name].weight)
        assert torch.equal(5 * linear.weight, weights[2][name].weight)
    assert ("scale: by 2.0", "scale: by 3.0") == pair.build.steps
    assert ("scale: by 2.0", "scale: by 5.0") == other.build.steps


def test_what_the_shared_step_cost_is_part_of_every_cost(build, keep_all):
    """The second recipe's seconds are those of the first step, measured once, and its own."""
    first = Scale(2.0)
    alone = build("a", first)
    pair = build("a+b", first, Scale(3.0))

    assert pair.build.time_s.value > alone.build.time_s.value > 0


def test_quick_steps_are_not_kept(build):
    """No copy of the model is held for a step that takes no time."""
    first = Scale(2.0)
    build("a", first)
    build("a+b", first, Scale(3.0))

    assert 2 == len(first.calls)


def test_another_first_step_replaces_the_one_that_was_kept(build, keep_all):
    """One model is held, not one a recipe."""
    first, second = Scale(2.0), Scale(3.0)
    build("a", first)
    build("b", second)
    build("a", first)

    assert (2, 1) == (len(first.calls), len(second.calls))


def test_the_reference_is_never_handed_out(build, reference, keep_all):
    """Whatever methods do to their module, the reference keeps its weights, and so does an earlier candidate."""
    before = weights_hash(reference)
    alone = build("a", Scale(2.0))
    pair = build("a+b", Scale(2.0), Scale(3.0))

    assert before == weights_hash(reference)
    assert alone.weights_hash == weights_hash(alone.module)
    assert alone.weights_hash != pair.weights_hash
    assert not any(parameter.requires_grad for parameter in pair.module.parameters())


def test_a_cost_that_is_not_whole_is_unmeasured(build):
    """After an interruption nobody knows what the training cost in all."""
    made = build("a+b", Scale(2.0), Scale(3.0, resumed="training went on at step 5 of 9"))

    assert (None, "training went on at step 5 of 9") == (made.build.time_s.value, made.build.time_s.reason)
    assert (None, "training went on at step 5 of 9") == (
        made.build.energy_j.value,
        made.build.energy_j.reason,
    )


def test_the_line_of_progress_is_wiped(build, said):
    """Also when a method fails."""

    @dataclass
    class Fails:
        def compress(self, module, context):
            context.tell("half way")
            raise CompressionError("fails on tiny: it always does")

    with pytest.raises(CompressionError):
        build("fails", Fails())

    assert ["half way", ""] == said


def joules(value, source="rapl", method="measured"):
    return Reading(value, "J", source, method, 0.1)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (joules(2.0), joules(3.0), (5.0, "")),
        (unmeasured("J", "rapl", "too short"), joules(3.0), (None, "too short")),
        (joules(2.0), unmeasured("J", "rapl", "gone"), (None, "gone")),
        (joules(2.0), joules(3.0, "nvml"), (None, "the steps were measured by rapl and measured by nvml")),
        (
            joules(2.0),
            joules(3.0, method="estimated"),
            (None, "the steps were measured by rapl and estimated by rapl"),
        ),
    ],
)
def test_costs_add_up_only_where_both_are_known_alike(first, second, expected):
    """A missing part makes the sum unmeasured, with its reason; measured and estimated joules never meet."""
    seconds = Reading(1.0, "s", "perf_counter", "measured", 1e-9)
    total = Spent(seconds, first) + Spent(seconds, second)

    assert 2.0 == total.seconds.value
    assert expected == (total.energy.value, total.energy.reason)

"""The training loop: seeded, resumable to the bit, and careful with what it is given."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.methods import Context, training
from pytest_llmslim.methods.training import Course, batch_of, train

COURSE = Course(steps=12, batch=2, rate=0.01)


def context(folder=None, **changes):
    made = Context(torch.arange(16).reshape(4, 4), 0, "cpu", "llama", "tiny", checkpoints=folder)
    return replace(made, **changes)


def net(seed=0):
    """A small network with dropout, some zeros, and a layer that no loss reaches."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3), nn.Linear(3, 3))
    made[0].weight.data[::2, 1] = 0
    made[0].bias.data[0] = 0
    return made.eval().requires_grad_(False)


def goal(module, stop=None):
    """The loss of `module` at predicting sums; at step `stop` the process 'dies'."""

    def loss(step, generator):
        if step == stop:
            raise KeyboardInterrupt
        inputs = torch.randn(8, 6, generator=generator)
        return (module[2](module[1](module[0](inputs))) - inputs[:, :3]).square().mean()

    return loss


def run(module, where=None, stop=None, course=COURSE, loss=None, **options):
    options = {"method": "kd", "context": where or context(), **options}
    method, about = options.pop("method"), options.pop("context")
    return train(
        method, module, dict(module.named_parameters()), loss or goal(module, stop), course, about, **options
    )


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture
def always(monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setattr(training, "EVERY_S", 0.0)


def interrupted(folder, stop, **options):
    """A training that died before step `stop`."""
    module = net()
    with pytest.raises(KeyboardInterrupt):
        run(module, context(folder), stop, **options)
    return module


def test_a_seed_gives_one_result():
    """Equal seeds give equal weights whatever the global generator holds, another seed gives others."""
    made = []
    for seed, shake in ((0, 1), (0, 2), (5, 1)):
        module = net()
        torch.manual_seed(shake)
        run(module, context(seed=seed))
        made.append(module)

    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_the_loss_falls_and_is_told():
    """`Trained` has the mean loss of the first and of the last tenth of the steps, and the sentence both."""
    trained = run(net(), course=Course(200, 1, 0.01))

    assert trained.last < 0.5 * trained.first
    assert f"loss {trained.first:.3g} to {trained.last:.3g} in 200 steps" == trained.sentence
    assert "" == trained.resumed


def test_the_loss_that_is_told_is_the_mean_of_tenths():
    """Losses 1, 2, ..., 20: the first two have the mean 1.5, the last two 19.5."""
    module = net()
    trained = run(
        module,
        course=Course(20, 1, 1e-6),
        loss=lambda step, _: module[0].weight.sum() * 0 + step + 1,
    )

    assert (1.5, 19.5, 20, 0) == (trained.first, trained.last, trained.steps, trained.resumed_at)


@pytest.mark.parametrize("stop", [1, 7, 11])
def test_an_interrupted_training_goes_on_as_if_it_had_not(tmp_path, always, stop):
    """Weights, losses and sentence are bit for bit those of a run that did not stop, and the rest is said."""
    whole = net()
    wanted = run(whole)
    interrupted(tmp_path, stop)
    module = net()
    got = run(module, context(tmp_path))

    assert same(whole, module)
    assert replace(wanted, resumed_at=stop) == got
    assert f"training went on at step {stop} of 12 after an interruption" == got.resumed
    assert [] == list(tmp_path.iterdir())


def test_a_killed_process_goes_on(tmp_path):
    """A process that is killed outright in its eighth step leaves seven steps to another one."""
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_methods_training as t
        from pathlib import Path
        t.training.EVERY_S = 0.0
        module = t.net()
        loss = t.goal(module)
        def fatal(step, generator):
            if step == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return loss(step, generator)
        t.run(module, t.context(Path({str(tmp_path)!r})), loss=fatal)
    """
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True)
    whole, module = net(), net()
    run(whole)
    got = run(module, context(tmp_path))

    assert -signal.SIGKILL == died.returncode, died.stderr.decode()
    assert 7 == got.resumed_at
    assert same(whole, module)


def test_nothing_is_kept_without_a_folder_or_before_the_time(tmp_path):
    """A short training writes no checkpoint, and none is written where no folder is named."""
    seen = []
    module = net()
    loss = goal(module)

    def watch(step, generator):
        seen.extend(tmp_path.rglob("*"))
        return loss(step, generator)

    run(module, context(tmp_path / "new"), loss=watch)

    assert [] == seen == list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "other",
    [
        {"context": {"seed": 1}},
        {"context": {"device": "cuda:1"}},
        {"context": {"calibration": torch.arange(16).reshape(4, 4) + 1}},
        {"method": "gkd"},
        {"identity": "alpha=1"},
        {"course": Course(13, 2, 0.01)},
        {"module": 1},
    ],
    ids=lambda other: next(iter(other)) + str(next(iter(other.values())))[:12],
)
def test_another_training_begins_anew(tmp_path, always, other):
    """Another seed, device, text, method, parameter, course or model takes nobody else's checkpoint."""
    interrupted(tmp_path, 5)
    options = dict(other)
    where = context(tmp_path, **options.pop("context", {}))
    got = run(net(options.pop("module", 0)), where, **options)

    assert 0 == got.resumed_at
    assert 1 == len(list(tmp_path.iterdir()))
    assert 5 == run(net(), context(tmp_path)).resumed_at


def spoil_bytes(file):
    file.write_bytes(file.read_bytes()[:-40])


def spoil_empty(file):
    file.write_bytes(b"")


def spoil_foreign(file):
    save_file({"weights": torch.zeros(3)}, file)


def spoil_notes(file):
    save_file(load_file(file), file, metadata={"losses": "[0.1, "})


def spoil_shape(file):
    tensors = load_file(file)
    save_file(
        {**tensors, "weight 0.weight": torch.zeros(1)}, file, metadata={"losses": json.dumps([1.0] * 5)}
    )


def spoil_state(file):
    kept = {name: tensor for name, tensor in load_file(file).items() if name != "exp_avg 2.weight"}
    save_file(kept, file, metadata={"losses": json.dumps([1.0] * 5)})


@pytest.mark.parametrize(
    "spoil",
    [spoil_bytes, spoil_empty, spoil_foreign, spoil_notes, spoil_shape, spoil_state],
)
def test_a_checkpoint_that_does_not_fit_is_as_none(tmp_path, always, spoil):
    """A damaged or foreign file under the right name: the training begins anew and ends as ever."""
    interrupted(tmp_path, 5)
    file = next(tmp_path.iterdir())
    spoil(file)
    whole, module = net(), net()
    run(whole)
    got = run(module, context(tmp_path))

    assert 0 == got.resumed_at
    assert same(whole, module)


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path, always):
    """The training goes on without, and says why there is none."""
    (tmp_path / "file").write_text("no folder")
    told = []
    whole, module = net(), net()
    run(whole)
    run(module, context(tmp_path / "file", progress=told.append))

    assert same(whole, module)
    assert 12 == len([line for line in told if line.startswith("kd: no checkpoint, ")])


def test_what_a_killed_process_half_wrote_goes_at_the_end(tmp_path, always):
    """Half a checkpoint of a process that is gone is removed with the checkpoint."""
    interrupted(tmp_path, 5)
    file = next(tmp_path.iterdir())
    file.with_suffix(".4711.part").write_bytes(b"half")
    (tmp_path / "kd-other.4711.part").write_bytes(b"of another training")
    run(net(), context(tmp_path))

    assert ["kd-other.4711.part"] == [left.name for left in tmp_path.iterdir()]


def test_a_killed_process_leaves_a_checkpoint_of_the_method(tmp_path, always):
    """The file is one safetensors file that begins with the method's name, whatever characters that has."""
    interrupted(tmp_path, 5, method="a/b c")

    assert [True] == [file.match("a-b-c-????????????????.safetensors") for file in tmp_path.iterdir()]


def test_every_step_is_told():
    """Number of the step and its loss."""
    told = []
    module = net()
    run(module, context(progress=told.append), loss=lambda step, _: module[0].weight.sum() * 0 + step)

    assert [f"kd: step {step} of 12, loss {step - 1}" for step in range(1, 13)] == told


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_refused(value):
    """The step is named, and the weights are those of the step before."""
    module = net()

    def loss(step, generator):
        return goal(module)(step, generator) * (value if step == 3 else 1)

    with pytest.raises(
        CompressionError,
        match=rf"^kd on tiny: the loss is a finite number, got {value} at step 4 of 12; lower rate$",
    ):
        run(module, loss=loss)
    assert all(torch.isfinite(p).all() and not p.requires_grad for p in module.parameters())


def test_a_gradient_that_is_no_number_is_refused():
    """A finite loss whose gradient is NaN does not reach the weights."""
    module = net()
    with pytest.raises(
        CompressionError,
        match=r"^kd on tiny: the norm of the gradient is a finite number, got nan at step 1 of 12; lower rate$",
    ):
        run(module, loss=lambda step, generator: (module[0].weight - module[0].weight.detach()).norm().sqrt())
    assert same(net(), module)


def test_exact_zeros_stay():
    """Pruned weights are zero after training, single biases that happen to be zero are free."""
    module = net()
    zeros = module[0].weight == 0
    run(module)

    assert torch.equal(zeros, module[0].weight == 0)
    assert 0 != float(module[0].bias[0])


def test_zeros_may_be_free():
    """Parameters that begin at zero can be trained."""
    module = net()
    run(module, keep_zeros=False)

    assert not (module[0].weight == 0).any()


def test_zeros_stay_over_an_interruption(tmp_path, always):
    """What is pruned is known from the weights at the beginning, not from the checkpoint."""
    interrupted(tmp_path, 5)
    module = net()
    run(module, context(tmp_path))

    assert torch.equal(net()[0].weight == 0, module[0].weight == 0)


def test_modules_stay_in_eval_mode_and_lose_their_gradients():
    """Dropout never acts, and afterwards nothing wants a gradient or holds one, also after a failure."""
    module = net().train()
    modes = []

    def loss(step, generator):
        modes.append(module.training)
        if step == 5:
            raise KeyboardInterrupt
        return goal(module)(step, generator)

    with pytest.raises(KeyboardInterrupt):
        run(module, loss=loss)

    assert {False} == set(modes)
    assert not module.training
    assert all(not p.requires_grad and p.grad is None for p in module.parameters())


def test_only_the_parameters_given_are_trained():
    """The rest of the module stays as it is and wants no gradients."""
    module = net()
    train("kd", module, {"w": module[2].weight}, goal(module), COURSE, context())
    changed = [n for n, p in module.named_parameters() if not torch.equal(p, net().get_parameter(n))]

    assert ["2.weight"] == changed


def test_the_rate_rises_and_falls():
    """Linearly over the first tenth, then a cosine down to a tenth of the highest rate."""
    course = Course(steps=100, batch=1, rate=0.5)
    rates = [course.rate_at(step) for step in range(100)]

    assert [0.05 * n for n in range(1, 11)] == pytest.approx(rates[:10])
    assert 0.5 == rates[10] == max(rates)
    assert 0.5 * (0.1 + 0.9 / 2) == pytest.approx(rates[55])
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert 0.05 == pytest.approx(course.rate_at(100))
    assert 0.5 == Course(1, 1, 0.5).rate_at(0)


def test_a_step_follows_the_rate_and_the_clipped_gradient():
    """The first step of AdamW moves every weight by the rate against the sign of its gradient, however large."""
    module = nn.Linear(2, 1, bias=False)
    module.weight.data = torch.tensor([[1.0, -1.0]])
    train(
        "kd",
        module,
        {"w": module.weight},
        lambda s, g: 1e6 * module.weight.abs().sum(),
        Course(1, 1, 0.25),
        context(),
    )

    assert [[0.75, -0.75]] == [[round(float(w), 6) for w in module.weight[0]]]


def test_batches_go_through_all_windows_in_each_round():
    """Every window comes once in a round, in an order that the seed and the round decide."""
    windows = torch.arange(7)[:, None]
    course = Course(7, 2, 1.0)
    drawn = torch.cat([batch_of(windows, course, step, seed=3) for step in range(7)]).flatten().tolist()
    other = torch.cat([batch_of(windows, course, step, seed=4) for step in range(7)]).flatten().tolist()

    assert list(range(7)) == sorted(drawn[:7]) == sorted(drawn[7:])
    assert drawn[:7] != drawn[7:]
    assert drawn != other
    assert drawn[4:6] == batch_of(windows, course, 2, seed=3).flatten().tolist()


@pytest.mark.parametrize(
    ("course", "rule"),
    [
        (Course(0, 1, 0.1), "steps is a whole number from 1 to 1000000, got 0"),
        (Course(1, 1.5, 0.1), "batch is a whole number from 1 to 1000000, got 1.5"),
        (Course(1, 1, 0), "rate is a number above 0 and at most 1, got 0"),
        (Course(1, 1, math.nan), "rate is a number above 0 and at most 1, got nan"),
    ],
)
def test_courses_that_cannot_be_trained_are_refused(course, rule):
    """Method, parameter, rule and value."""
    with pytest.raises(RecipeError, match=f"^kd: {rule}$"):
        course.check("kd")

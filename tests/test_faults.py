"""Whole runs in which something breaks: what was measured before is kept, and each fault is one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pytest_llmslim import session
from pytest_llmslim.records import Reading, unmeasured

CONFTEST = """
    import torch

    def halve(model):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.float16).to(torch.float32)
        model.lm_head.weight.data.mul_(1.0 + 1e-3)
"""


def records(pytester):
    """The records on disk."""
    path = pytester.path / "llm-results/results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# Meters ---------------------------------------------------------------------------------------------------


class VanishingMeter:
    """Gives a joule for each of its first windows; then its GPU has fallen off the bus."""

    source, method, description, because = "nvml-counter", "measured", "a GPU that vanishes", ()

    def __init__(self, windows, least=0.002):
        self.left, self.min_window_s = windows, least

    def start(self):
        pass

    def stop(self):
        self.left -= 1
        if self.left < 0:
            return unmeasured("J", self.source, "nvml-counter failed at the end of the window: GPU is lost")
        return Reading(1.0 + 0.001 * self.left, "J", self.source, "measured", 0.1)

    def metering(self):
        from pytest_llmslim.records import Metering

        return Metering()

    def close(self):
        pass


def test_a_meter_that_vanishes_in_the_middle_of_a_run_costs_its_numbers_only(pytester, run, monkeypatch):
    """The first recipe has its joules, the second has none and the reason; quality and time of both stand."""
    # The build's window, then one for each model of two blocks; what follows finds no GPU.
    monkeypatch.setattr(session, "choose_energy_meter", lambda device: VanishingMeter(1 + 4))
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.llm(recipes=["int8", "magnitude(sparsity=0.5)", "fp4"])
        def test_ships(llm):
            llm.measure()
        """
    )
    result = run("--llm-recipe=int8", "--llm-recipe=fp4")
    assert result.ret == pytest.ExitCode.OK
    first, second = records(pytester)
    assert first["energy"]["method"] == "measured"
    assert first["energy"]["value"] > 0
    assert (second["energy"]["value"], second["energy"]["method"]) == (None, "unmeasured")
    assert second["time"]["value"] > 0
    assert second["candidate"]["energy_j"]["value"] is None
    result.stdout.fnmatch_lines(
        ["- energy unmeasured: nvml-counter failed at the end of the window: GPU is lost"]
    )


def test_a_limit_on_energy_is_not_passed_by_a_meter_that_is_gone(pytester, run, monkeypatch):
    """It cannot be checked: inconclusive, and failed under --llm-strict."""
    monkeypatch.setattr(session, "choose_energy_meter", lambda device: VanishingMeter(0))
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.llm(recipe="int8", max_energy_increase="50%")
        def test_ships(llm):
            llm.measure()
        """
    )
    assert run().ret == pytest.ExitCode.OK
    result = run("--llm-strict")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*max_energy_increase 50 % cannot be checked: unmeasured (nvml-counter failed*GPU is lost)."]
    )


# Candidates -----------------------------------------------------------------------------------------------

CANDIDATES = """
    import time
    import pytest
    import torch
    from conftest import halve

    class Odd(torch.nn.Module):
        def __init__(self, model, act):
            super().__init__()
            self.model, self.act, self.config = model, act, model.config

        def forward(self, **inputs):
            out = self.model(**inputs)
            self.act(out)
            return out

    def nan(out):
        out.logits = out.logits * float("nan")

    def crash(out):
        raise KeyError("layer 7")

    def exhausted(out):
        raise MemoryError("cannot allocate 400 GB")

    @pytest.mark.parametrize("act", [nan, crash, exhausted], ids=lambda act: act.__name__)
    def test_odd(llm, act):
        llm.measure(lambda model: Odd(model, act), label=act.__name__)

    def test_behind_our_back(llm):
        reference = llm.reference.module

        def compress(model):
            halve(model)
            reference.lm_head.weight.data.mul_(1.5)
            return model

        llm.measure(compress)

    def test_slowly_behind_our_back(llm):
        reference = llm.reference.module
        llm.measure(lambda model: Odd(model, lambda out: reference.lm_head.weight.data.mul_(1.0001)), label="sly")

    def test_well(llm):
        llm.measure(halve)
"""


def test_every_odd_candidate_is_one_sentence_and_the_next_test_is_measured(pytester, run):
    """NaN, a crash, no memory, and a reference that is changed: named, and nothing of it lasts."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_own=CANDIDATES)
    result = run("--tb=short")
    result.assert_outcomes(failed=5, passed=1)
    result.stdout.fnmatch_lines_random(
        [
            "*nan on tiny-gpt2 gives no finite probabilities on window 0 (NaN or inf in the logits); check*",
            "*crash on tiny-gpt2 failed in a forward pass (KeyError: 'layer 7'); run the model by itself*",
            "*exhausted on tiny-gpt2 failed in a forward pass (MemoryError: cannot allocate 400 GB)*",
            "*compress on tiny-gpt2: the reference's weights changed while the candidate was made or run, so nothing*",
            "*sly on tiny-gpt2: the reference's weights changed while the candidate was made or run, so nothing*",
        ]
    )
    (record,) = records(pytester)
    assert record["key"]["recipe"] == "halve"
    assert record["perplexity"]["value"] == pytest.approx(1, rel=0.01)


# Processes ------------------------------------------------------------------------------------------------

TWO = """
    import os
    import time
    import pytest

    @pytest.mark.llm(recipe="int8")
    def test_first(llm):
        llm.measure()

    @pytest.mark.llm(recipe="magnitude(sparsity=0.5)")
    def test_second(llm):
        {act}
        llm.measure()
"""


def test_a_real_interrupt_keeps_what_was_finished(pytester, small):
    """SIGINT to the process: exit code 2, complete records in the results, no half of a baseline."""
    pytester.makepyfile(test_own=TWO.format(act="open('here', 'w').close(); time.sleep(60)"))
    command = [sys.executable, "-m", "pytest", *small("-p", "no:benchmark", "--llm-update")]
    heard = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background hands on that it is deaf
    process = subprocess.Popen(
        command, cwd=pytester.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    signal.signal(signal.SIGINT, heard)
    began = time.monotonic()
    while not (pytester.path / "here").exists() and time.monotonic() - began < 120:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert [record["key"]["recipe"] for record in records(pytester)] == ["int8"]
    assert not list(pytester.path.glob("baselines/*/*"))

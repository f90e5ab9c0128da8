"""What workers of pytest-xdist are given: seats, one GPU each where there are several, and the leases of both."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
from fake_nvml import Card, FakeNvml

from pytest_llmslim import workers
from pytest_llmslim.errors import SettingError
from pytest_llmslim.fingerprint import machine_fingerprint
from pytest_llmslim.meters.gpus import visible_gpus
from pytest_llmslim.workers import Controller, check_gpu

TWO = (Card(uuid="GPU-aaaa"), Card(uuid="GPU-bbbb"))
UNLIKE = (Card("Fast", "GPU-aaaa"), Card("Slow", "GPU-bbbb"))


@pytest.fixture
def machine(monkeypatch):
    """A machine with these GPUs and this CUDA_VISIBLE_DEVICES."""

    def build(cards, listed=None, **options):
        monkeypatch.setitem(sys.modules, "pynvml", nvml := FakeNvml(*cards, **options))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # noted, so that what a worker sets is undone
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        if listed is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        return nvml

    return build


@pytest.mark.parametrize(
    ("cards", "listed", "gpus"),
    [
        (TWO, None, ["GPU-aaaa", "GPU-bbbb"]),
        (TWO, "1,0", ["1", "0"]),
        (TWO, " 1 , 0", ["1", "0"]),
        (TWO, "1", ["1"]),
        (TWO, "GPU-bbbb,GPU-aaaa", ["GPU-bbbb", "GPU-aaaa"]),
        (TWO, "0,7", ["0"]),
        (TWO, "0,-1,1", ["0"]),
        (TWO, "0,0", []),
        (TWO, "", []),
        (TWO, "-1", []),
        (UNLIKE, None, ["GPU-aaaa", "GPU-bbbb"]),
        (UNLIKE, "1,0", ["1", "0"]),
        ((Card(mig=True), Card(uuid="GPU-bbbb", mig=False)), None, []),
        ((Card(mig=True),), "MIG-a,MIG-b", ["MIG-a", "MIG-b"]),
        ((), None, []),
    ],
)
def test_gpus_to_give_away_are_those_that_cuda_sees(machine, cards, listed, gpus):
    """In the user's order and words; where nothing is listed, by UUID, since CUDA and NVML count differently."""
    nvml = machine(cards, listed)
    assert workers._gpus("auto") == workers._gpus("cuda") == gpus
    assert nvml.opened == 0


@pytest.mark.parametrize("device", ["cpu", "cuda:1", "mps"])
def test_a_device_that_was_named_is_no_pool(machine, device):
    """Whoever says cuda:1 means it, in every worker."""
    machine(TWO)
    assert workers._gpus(device) == []


@pytest.mark.parametrize(("listed", "gpus"), [(None, []), ("3,5", ["3", "5"])])
def test_without_nvml_the_users_list_stands(machine, listed, gpus):
    """A container may compute on GPUs that it cannot watch."""
    machine(TWO, listed, driver=False)
    assert workers._gpus("auto") == gpus


def worker_config(pytestconfig, seat, device="auto", folder=""):
    """A config of xdist's worker, as far as ours looks at it."""
    config = SimpleNamespace(
        workerinput={
            "workerid": f"gw{seat}",
            "workercount": 3,
            "llmslim": {"seat": seat, "folder": str(folder)},
        },
        stash=pytest.Stash(),
    )
    config.stash[workers.settings_of.__globals__["SETTINGS"]] = SimpleNamespace(device=device)
    return config


@pytest.mark.parametrize("listed", [None, "1,0", "GPU-bbbb,GPU-aaaa"])
def test_each_worker_sees_one_gpu_and_more_workers_share(
    machine, pytestconfig, tmp_path, monkeypatch, listed
):
    """By CUDA_VISIBLE_DEVICES, which energy meter and fingerprint follow; the lease is that GPU's."""
    seen = []
    for seat in range(3):
        machine((Card("A", "GPU-aaaa"), Card("A", "GPU-bbbb")), listed)
        config = worker_config(pytestconfig, seat, folder=tmp_path / "leases")
        workers.Worker(config)._share()
        nvml = sys.modules["pynvml"]
        (gpu,) = visible_gpus(nvml, "cuda")
        machine_fingerprint(device="cuda", threads=1, dtype="float32", energy_source="nvml")
        seen.append((gpu.uuid, os.environ["CUDA_VISIBLE_DEVICES"], config.stash[workers.LEASE]))
    first, second, third = seen
    assert {first[0], second[0]} == {"GPU-aaaa", "GPU-bbbb"}
    assert first[:2] == third[:2]
    names = {path.stem for path in (tmp_path / "leases").iterdir()}
    assert len(names) == 2
    for *_, lease in seen:
        lease.close()


@pytest.mark.parametrize(
    ("cards", "device"), [(TWO[:1], "auto"), ((), "auto"), (TWO, "cpu"), (TWO, "cuda:1")]
)
def test_with_one_device_for_all_the_lease_is_the_machines(machine, pytestconfig, tmp_path, cards, device):
    """Nothing is pinned; they take turns."""
    machine(cards)
    config = worker_config(pytestconfig, 1, device, tmp_path / "leases")
    workers.Worker(config)._share()
    assert {path.stem for path in (tmp_path / "leases").iterdir()} == {"machine"}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert workers.PINNED not in config.stash
    config.stash[workers.LEASE].close()


@pytest.mark.parametrize(("there", "seen", "fails"), [(True, 1, False), (True, 2, True), (False, 2, False)])
def test_cuda_that_was_started_too_early_is_no_silent_mistake(monkeypatch, pytestconfig, there, seen, fails):
    """A conftest.py that asks torch.cuda at import has it see all GPUs, while the meter watches one."""
    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(is_available=lambda: there)
    torch.accelerator = SimpleNamespace(device_count=lambda: seen)
    monkeypatch.setitem(sys.modules, "torch", torch)
    config = worker_config(pytestconfig, 0)
    check_gpu(config)
    config.stash[workers.PINNED] = "GPU-aaaa"
    if not fails:
        check_gpu(config)
        return
    with pytest.raises(SettingError) as caught:
        check_gpu(config)
    assert str(caught.value) == (
        "gw0 was to use GPU GPU-aaaa alone, but CUDA had been started before with all of them, and what runs on which "
        "could not be told: ask torch.cuda in tests and not while files are imported, or set "
        "PYTORCH_NVML_BASED_CUDA_CHECK=1."
    )


def node(name, **spec):
    """A worker as xdist's controller sees it."""
    gateway = SimpleNamespace(id=name, spec=SimpleNamespace(**({"popen": True, "via": None} | spec)))
    return SimpleNamespace(gateway=gateway, workerinput={})


@pytest.fixture
def controller(pytestconfig):
    ledger = SimpleNamespace(remarks=[])
    manager = SimpleNamespace(get_plugin=lambda name: ledger)
    return Controller(SimpleNamespace(pluginmanager=manager))


def test_who_replaces_a_crashed_worker_takes_its_seat(controller):
    """And with it its GPU, which nobody else uses."""
    first, second, third = node("gw0"), node("gw1"), node("gw2")
    for each in (first, second):
        controller.pytest_configure_node(each)
    controller.pytest_testnodedown(first)
    controller.pytest_configure_node(third)
    assert [each.workerinput["llmslim"]["seat"] for each in (first, second, third)] == [0, 1, 0]


@pytest.mark.parametrize("spec", [{"popen": None, "ssh": "host"}, {"via": "proxy"}])
def test_workers_on_another_machine_have_no_lease(controller, spec):
    """They do not see the folder, so what disturbs them is not known."""
    here, there = node("gw0"), node("gw1", **spec)
    for each in (here, there):
        controller.pytest_configure_node(each)
    assert here.workerinput["llmslim"]["folder"]
    assert there.workerinput["llmslim"]["folder"] == ""


PINNING = """
import json, os, sys
import pytest

sys.path.insert(0, {tests!r})
from fake_nvml import Card, FakeNvml

sys.modules["pynvml"] = FakeNvml(Card(uuid="GPU-aaaa"), Card(uuid="GPU-bbbb"))
"""
PINNED_TESTS = """
import os, time
import pytest
import torch

@pytest.fixture
def own(llm_case):
    return llm_case

@pytest.mark.parametrize("n", range(6))
def test_it(own, n, record_property):
    from pathlib import Path
    name = os.environ["PYTEST_XDIST_WORKER"]
    Path(f"{name}.txt").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    time.sleep(0.2)
"""


def test_a_run_gives_each_worker_its_gpu(pytester, small):
    """In whole runs with -n 2, after collection and before any model is loaded."""
    pytester.makeconftest(PINNING.format(tests=os.path.dirname(__file__)))
    pytester.makepyfile(test_own=PINNED_TESTS)
    options = [option.replace("device=cpu", "device=auto") for option in small()]
    pytester.runpytest_subprocess("-n2", "-p", "no:benchmark", *options).assert_outcomes(passed=6)
    assert {path.name: path.read_text() for path in pytester.path.glob("gw*.txt")} == {
        "gw0.txt": "GPU-aaaa",
        "gw1.txt": "GPU-bbbb",
    }


def test_projects_without_our_tests_keep_their_gpus(pytester):
    """Tests that need several GPUs would not find them otherwise."""
    pytester.makeconftest(PINNING.format(tests=os.path.dirname(__file__)))
    pytester.makepyfile("import os\ndef test_it(): assert 'CUDA_VISIBLE_DEVICES' not in os.environ")
    pytester.runpytest_subprocess("-n2").assert_outcomes(passed=1)

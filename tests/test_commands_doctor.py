"""What `llmslim doctor` finds on machines, in installations and in projects that lack something."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import psutil
import pytest
import sample_records
import torch
from _pytest.config.findpaths import locate_config
from click.testing import CliRunner
from fake_nvml import Card, FakeNvml, VirtualClock
from fake_rapl import FakeRapl, FakeZone

from pytest_llmslim import baselines
from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.commands import doctor, findings, ini_files, machine_probes, project_probes
from pytest_llmslim.commands.findings import Finding, Probe, answer
from pytest_llmslim.errors import MeasurementError, ModelError, SettingError
from pytest_llmslim.fingerprint import machine_fingerprint
from pytest_llmslim.meters.rapl import open_rapl
from pytest_llmslim.meters.replay import ReplayMeter

ROOT = Path(__file__).parents[1]
GB = 10**9


def only(found):
    (one,) = found
    return one


# The whole -------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    """The hub is not asked."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def examined(offline, tmp_path):
    """Calls the command on an empty folder."""
    return lambda *args: CliRunner().invoke(doctor.command, [str(tmp_path), *args])


def test_a_machine_on_which_tests_run_can_measure(examined):
    """Exit code 0, the answer first, and every finding in the JSON with its group."""
    result = examined("--format", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    assert document["schema"] == 1
    assert document["ready"] is True
    names = {found["name"]: found for found in document["findings"]}
    assert {"torch", "transformers", "embedded models", "cpu", "memory", "clocks", "hub", "settings"} <= set(
        names
    )
    assert names["torch"] == {
        "group": "what a run needs",
        "name": "torch",
        "state": "ok",
        "sentence": torch.__version__,
        "step": "",
        "needed": True,
    }
    assert {found["state"] for found in document["findings"]} <= {"ok", "limited", "missing"}
    undone = [
        found["name"] for found in document["findings"] if found["state"] == "missing" and not found["step"]
    ]
    assert undone == []


def test_the_text_says_state_name_sentence_and_step(monkeypatch, examined):
    """A line each, what to do below it, and no line wider than a terminal."""
    found = Finding("rapl", "missing", "The counters are locked " + "for a long time " * 9, "sudo chmod")
    monkeypatch.setattr(doctor, "examined", lambda folder: {"energy": (found, Finding("x", "ok", "fine"))})
    lines = examined().output.splitlines()
    assert lines[:3] == ["A run can be made here.", "", "energy"]
    assert lines[3].startswith("  missing  rapl  The counters are locked for a long")
    assert "                 -> sudo chmod" in lines
    assert lines[-1] == "  ok       x     fine"
    assert max(map(len, lines)) <= doctor.WIDTH


@pytest.mark.parametrize(("needed", "state", "code"), [(True, "missing", 1), (True, "limited", 1), (True, "ok", 0),
                                                       (False, "missing", 0)])  # fmt: skip
def test_only_what_a_run_needs_decides_the_exit_code(monkeypatch, examined, needed, state, code):
    """A machine without a GPU, a meter or a hub measures all the same."""
    found = Finding("thing", state, "it is gone", needed=needed)
    monkeypatch.setattr(doctor, "examined", lambda folder: {"group": (found,)})
    result = examined()
    assert result.exit_code == code
    first = "No run can be made here: it is gone." if code else "A run can be made here."
    assert result.output.splitlines()[0] == first


def test_a_broken_torch_is_found_and_all_else_is_asked(tmp_path):
    """An installation that cannot import torch gets its error in a sentence, exit code 1, and no traceback."""
    broken = tmp_path / "libraries/torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    environment = os.environ | {"PYTHONPATH": str(broken.parent), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-c",
        "from pytest_llmslim.commands import main; main()",
        "doctor",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(
        "No run can be made here: torch cannot be imported: libcudart.so.13: cannot open shared object file"
    )
    assert "-> pip install --force-reinstall torch" in done.stdout
    assert "  ok       clocks" in done.stdout or "  limited  clocks" in done.stdout
    assert "project " in done.stdout


# Probes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ZeroDivisionError("no"), SystemExit("no"), KeyboardInterrupt("no")])
def test_a_probe_that_raises_costs_one_line(error):
    """Whatever a library throws."""

    def look():
        raise error

    assert answer(Probe("thing", look)) == (
        Finding("thing", "limited", "could not be looked at: no", findings.REPORT),
    )


def test_a_probe_that_hangs_is_left_behind(tmp_path, monkeypatch):
    """In the folder in which it was started, although codecarbon opens in another."""
    monkeypatch.chdir(tmp_path)
    stop = threading.Event()

    def look():
        os.chdir("/")
        stop.wait(60)
        return []

    began = time.monotonic()
    found = only(answer(Probe("driver", look, 0.2)))
    stop.set()
    assert (found.state, found.sentence) == ("limited", "gave no answer within 200 ms")
    assert time.monotonic() - began < 5
    assert Path.cwd() == tmp_path


# Devices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "state"), [("max 100000", "ok"), ("50000 100000", "limited"), (None, "ok"), ("nonsense", "ok")]
)
def test_a_container_with_less_than_its_cores_is_told(tmp_path, quota, state):
    """The kernel's own file says how much time it gets."""
    if quota:
        (tmp_path / "cpu.max").write_text(quota)
    found = only(machine_probes.cpu(tmp_path))
    assert found.state == state
    assert found.sentence.endswith("this container gets the time of 0.5 cores") == (state == "limited")


Memory = namedtuple("Memory", "available total")


@pytest.mark.parametrize(
    ("free", "limit", "used", "state", "said"),
    [
        (8 * GB, "max", 0, "ok", "8.00 GB of 16.0 GB are free"),
        (2 * GB, "max", 0, "ok", "2.00 GB of 16.0 GB are free"),
        (2 * GB - 10**8, "max", 0, "limited", "1.90 GB of 16.0 GB are free"),
        (8 * GB, 4 * GB, GB, "ok", "3.00 GB of 4.00 GB are free"),
        (8 * GB, 4 * GB, 3 * GB, "limited", "1.00 GB of 4.00 GB are free"),
        (8 * GB, 64 * GB, GB, "ok", "8.00 GB of 16.0 GB are free"),
    ],
)
def test_memory_is_what_this_container_may_use(tmp_path, monkeypatch, free, limit, used, state, said):
    """The smaller of the machine's and the container's."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(free, 16 * GB))
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    found = only(machine_probes.memory(tmp_path))
    assert (found.state, found.sentence) == (state, said)


@pytest.fixture
def gpus(monkeypatch):
    """Sets what torch and NVML say of GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def become(nvml, *, usable=0, built=None, free=80 * GB):
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Fake H{number}")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free, 80 * GB))
        return [(found.name, found.state, found.sentence, found.step) for found in machine_probes.cuda()]

    return become


def test_gpus_are_listed_with_their_free_memory(gpus):
    """One line a GPU; one that is nearly full is limited."""
    assert gpus(FakeNvml(Card()), usable=2) == [
        (f"cuda:{number}", "ok", f"Fake H{number}, 80.0 GB of 80.0 GB are free", "") for number in range(2)
    ]
    assert gpus(FakeNvml(Card()), usable=1, free=GB)[0][1:] == (
        "limited", "Fake H0, 1.00 GB of 80.0 GB are free", "see in nvidia-smi who uses it",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("built", "why"), [(None, "is a build without CUDA"), ("11.1", "is built for CUDA 11.1")]
)
def test_a_gpu_that_torch_cannot_use_is_the_builds_fault(gpus, built, why):
    """The commonest reason for a slow first run on a GPU machine."""
    nvml = FakeNvml(Card())
    ((_, state, sentence, step),) = gpus(nvml, built=built)
    assert (state, sentence) == (
        "limited", f"Fake H1 is there, and torch {torch.__version__}, which {why}, cannot use it",
    )  # fmt: skip
    assert "https://pytorch.org" in step
    assert nvml.opened == 0


def test_no_gpu_is_no_fault(gpus):
    """What NVML says, and that none is needed."""
    ((name, state, sentence, step),) = gpus(FakeNvml(driver=False))
    assert (name, state, step) == ("cuda", "missing", "none is needed: models run on the CPU")
    assert sentence.startswith("no GPU: NVML is not usable on this machine: NVML Shared Library Not Found")


# Energy -----------------------------------------------------------------------------------------------------


PACKAGE = FakeZone("intel-rapl:0", "package-0", watts=100.0)


@pytest.fixture
def rapl(tmp_path):
    """Makes the first rung of the CPU's ladder, on counters that are as said."""

    def rung(access):
        clock = VirtualClock()
        fake = FakeRapl(tmp_path / "powercap", PACKAGE, clock=clock)
        fake.become(access)

        def open_it(device):
            return open_rapl(device, root=fake.root, read=fake.read, clock=clock)

        open_it.__name__ = "open_rapl"
        return open_it

    return rung


def estimate(device):
    """A rung that always holds."""
    meter = ReplayMeter([1.0])
    meter.method, meter.description, meter.min_window_s = "estimated", "a model", 0.2
    return meter


@pytest.mark.parametrize(
    ("access", "sentence", "step"),
    [
        ("root only", "readable by root only", "sudo chmod -R a+r /sys/devices/virtual/powercap/intel-rapl"),
        ("masked", "hidden from this container", "--security-opt systempaths=unconfined"),
        ("absent", "There are no RAPL counters", "measure on the machine itself"),
    ],
)
def test_counters_that_may_not_be_read_come_with_the_command(rapl, access, sentence, step):
    """And the estimate that a run would take stands below, as limited."""
    missing, chosen = machine_probes.energy("cpu", (rapl(access), estimate))
    assert (missing.name, missing.state) == ("rapl", "missing")
    assert sentence in missing.sentence
    assert step in missing.step
    assert (chosen.name, chosen.state) == ("estimate", "limited")
    assert chosen.sentence == "estimated: a model; windows from 200 ms on"
    assert "--llm-gate-estimated" in chosen.step


def test_counters_that_count_are_chosen(rapl):
    """With their period, and so the shortest window; what would come next is not asked."""
    found = only(machine_probes.energy("cpu", (rapl("readable"), estimate)))
    assert (found.name, found.state, found.step) == ("rapl", "ok", "")
    assert re.fullmatch(
        r"measured: RAPL counters package-0, updated every 1\.0\d ms; .*; windows from 20\.\d ms on",
        found.sentence,
    )


def test_where_no_meter_works_the_rest_is_measured(monkeypatch):
    """Each with its reason, and what still can be had."""

    def open_counter(device):
        raise MeasurementError("NVML sees no GPU for cuda; look at nvidia-smi.")

    first, last = machine_probes.energy("cuda", (open_counter,))
    assert first == Finding("nvml-counter", "missing", "NVML sees no GPU for cuda", "look at nvidia-smi")
    assert (last.name, last.state, last.sentence) == ("energy", "missing", "no meter works on cuda")
    assert last.step.startswith("quality, time, memory and bytes are measured all the same")


# Clocks and other work --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "flags", "state", "sentence"),
    [
        (False, "flags : avx2", "ok", "neither a container nor a virtual machine is seen"),
        (True, "flags : avx2", "limited", "this is a container"),
        (False, "flags : avx2 hypervisor", "limited", "this is a virtual machine"),
        (True, "flags : avx2 hypervisor", "limited", "this is a container in a virtual machine"),
    ],
)
def test_surroundings(tmp_path, container, flags, state, sentence):
    """A container and a virtual machine hide counters, each in its way."""
    (tmp_path / "cpuinfo").write_text(flags)
    if container:
        (tmp_path / ".dockerenv").touch()
    found = only(
        machine_probes.surroundings((tmp_path / ".dockerenv",), tmp_path / "cpuinfo", tmp_path / "absent")
    )
    assert (found.state, found.sentence) == (state, sentence)


@pytest.mark.parametrize(("others", "state"), [(0.0, "ok"), (0.25, "ok"), (0.75, "limited"), (-0.1, "ok")])
def test_other_work_is_what_this_process_does_not_use(monkeypatch, others, state):
    """All cores' use less that of the thread that spins meanwhile."""
    cores = 4
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 100 * (1 + others) / cores)
    ticks = SimpleNamespace(cpu_ns=500_000_000, wall_ns=500_000_000)
    monkeypatch.setattr(
        machine_probes, "Stopwatch", lambda: SimpleNamespace(start=lambda: None, stop=lambda: ticks)
    )
    watch = SimpleNamespace(begin=lambda: None, lap=lambda ticks: None, end=lambda: (), close=lambda: None)
    monkeypatch.setattr(machine_probes, "Watch", lambda device, threads: watch)
    found = only(machine_probes.other_work())
    assert found.state == state
    assert found.sentence == f"others use {max(0.0, others):.1f} of 4 cores, wall / CPU time is 1.00"


# Installation -----------------------------------------------------------------------------------------------


def test_every_extra_has_a_use():
    """An extra that is added to pyproject.toml is shown with what needs it, or is for contributors."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    used = {*project_probes.USES, *(spec.extra for spec in BUILTIN_METHODS)} - {""}
    assert set(declared) == used | set(project_probes.CONTRIBUTORS)


@pytest.mark.parametrize(
    ("version", "state", "sentence"),
    [
        (None, "missing", "plotly is not installed"),
        ("5.24.1", "limited", "plotly 5.24.1 is not >=6"),
        ("6.0.0", "ok", "plotly 6.0.0, for --llm-report"),
    ],
)
def test_an_extra_is_there_missing_or_too_old(monkeypatch, version, state, sentence):
    """With the line that installs it."""
    known = project_probes._version
    monkeypatch.setattr(project_probes, "_version", lambda name: version if name == "plotly" else known(name))
    found = next(found for found in project_probes.extras() if found.name == "report")
    assert found.state == state
    assert found.sentence.startswith(sentence)
    assert found.step == ("" if state == "ok" else "pip install 'pytest-llmslim[report]'")


def test_a_dependency_that_does_not_fit_is_named(monkeypatch):
    """A project that pins another version of transformers hears of it here."""
    known = project_probes._version
    versions = {"scipy": None, "transformers": "4.40.0"}
    monkeypatch.setattr(project_probes, "_version", lambda name: versions.get(name, known(name)))
    monkeypatch.setitem(versions, "scipy", None)
    found = only(project_probes.installation())
    assert found.state == "limited"
    assert "transformers 4.40.0 is not <6,>=5.15" in found.sentence
    assert "'scipy>=1.14'" in found.step


@pytest.mark.parametrize("fault", ["folder", "weights"])
def test_embedded_models_that_are_gone_are_found(monkeypatch, tmp_path, fault):
    """A package without its files cannot run what `llmslim init` writes."""

    def folder(name):
        if fault == "folder":
            raise ModelError("embedded:gpt2 comes with the package, got no model there; install it again")
        return tmp_path

    monkeypatch.setattr(project_probes.embedded, "folder", folder)
    found = only(project_probes.embedded_models())
    assert (found.state, found.needed) == ("missing", True)
    assert found.step in ("install it again", "pip install --force-reinstall --no-deps pytest-llmslim")


@pytest.mark.parametrize(
    ("pytest_version", "plugin", "state"),
    [
        ("9.1.9", "3.8.0", "ok"),
        ("9.2.0", "3.8.0", "limited"),
        ("9.2.0", "3.8.1", "ok"),
        ("9.3.0", "3.7.0", "limited"),
        ("9.2.0", None, None),
    ],
)
def test_workers_that_would_not_group_are_told(monkeypatch, pytest_version, plugin, state):
    """pytest-xdist's issue 1386, by the versions in which it is."""
    versions = {"pytest": pytest_version, "pytest-xdist": plugin}
    monkeypatch.setattr(project_probes, "_version", versions.get)
    assert [found.state for found in project_probes.xdist()] == ([state] if state else [])


# Data -------------------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint(monkeypatch):
    """Sets a hub of our own that answers with a status; 0: nobody listens there."""
    servers = []

    def become(status):
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        url = f"http://127.0.0.1:{server.server_port}"
        if status:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            servers.append(server)
        else:
            server.server_close()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        return url

    yield become
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (401, "ok"), (503, "ok"), (0, "missing")])
def test_the_hub_answers_or_not(endpoint, status, state):
    """Any answer is one; where there is none, what goes without it is said."""
    url = endpoint(status)
    found = only(project_probes.hub())
    assert found.state == state
    assert url in found.sentence
    assert ("--llm-data" in found.step) == (state == "missing")


def test_a_hub_that_is_switched_off_is_not_asked(offline):
    """HF_HUB_OFFLINE is a choice, and named."""
    assert only(project_probes.hub()).sentence == "it is not asked, by HF_HUB_OFFLINE"


def test_what_is_cached_is_named(tmp_path, monkeypatch):
    """Models and data sets by their names on the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert only(project_probes.hub_cache()).state == "missing"
    for name in ("models--gpt2", "models--google--gemma-3-270m", "datasets--allenai--ai2_arc"):
        (tmp_path / name).mkdir()
    found = only(project_probes.hub_cache())
    assert found.sentence == (
        f"{tmp_path} holds 2 models (google/gemma-3-270m, gpt2), 1 datasets (allenai/ai2_arc)"
    )


def test_local_tasks_are_found_by_their_files(tmp_path):
    """In the folder of `llm_data`; one that is no folder stops every run."""
    assert only(project_probes.local_tasks(tmp_path)).sentence == "llm_data is not set"
    (tmp_path / "pytest.ini").write_text("[pytest]\nllm_data = tasks\n")
    found = only(project_probes.local_tasks(tmp_path))
    assert (found.state, found.needed) == ("missing", True)
    (tmp_path / "tasks/glue/RTE").mkdir(parents=True)
    assert only(project_probes.local_tasks(tmp_path)).state == "limited"
    (tmp_path / "tasks/glue/RTE/dev.tsv").touch()
    found = only(project_probes.local_tasks(tmp_path))
    assert (found.state, found.sentence) == ("ok", f"{tmp_path / 'tasks'} holds 1 tasks of lm-eval (rte)")


# Project ----------------------------------------------------------------------------------------------------


FILES = {
    "pytest.ini": "[pytest]\nllm_threads = 2\n",
    ".pytest.ini": "[pytest]\nllm_threads = 2\n",
    "pytest.toml": '[pytest]\nllm_threads = "2"\n',
    "pyproject.toml": '[tool.pytest.ini_options]\nllm_threads = "2"\n',
    "tox.ini": "[tox]\n[pytest]\nllm_threads = 2\n",
    "setup.cfg": "[metadata]\n[tool:pytest]\nllm_threads = 2\n",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("beside", [None, *FILES])
def test_settings_are_found_where_pytest_finds_them(tmp_path, name, beside):
    """In the file that pytest itself takes, from a folder below it too."""
    (tmp_path / name).write_text(FILES[name])
    if beside:
        (tmp_path / beside).write_text(FILES[beside])
    (tmp_path / "below").mkdir()
    found = ini_files.find(tmp_path / "below")
    assert found.path == locate_config(tmp_path, [tmp_path / "below"])[1]
    assert ini_files.resolved(tmp_path / "below").threads == 2


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("pytest.ini", "", {}),
        ("pyproject.toml", "[project]\nname = 'x'\n", {}),
        ("pyproject.toml", "[tool.pytest]\nllm_rounds = '9'\n", {"llm_rounds": "9"}),
        ("pyproject.toml", "[tool.pytest.ini_options]\n", {}),
        ("pyproject.toml", "[tool.pytest.ini_options]\nllm_model = ['a', 'b']\nllm_rounds = 9\n",
         {"llm_model": ["a", "b"], "llm_rounds": "9"}),
        ("tox.ini", "[tox]\n", None),
        ("setup.cfg", "[metadata]\nname = x\n", None),
    ],
)  # fmt: skip
def test_only_files_with_settings_of_pytest_count(tmp_path, name, text, values):
    """But a file of pytest's own, which counts even when it is empty, and a bare pyproject.toml where no other does."""
    (tmp_path / name).write_text(text)
    found = ini_files.find(tmp_path)
    assert (found.values if found else None) == values
    theirs = locate_config(tmp_path, [tmp_path])[1]
    assert theirs == (found.path if found else None)


def test_a_file_that_pytest_cannot_read_is_named(tmp_path):
    """As a setting that a user can mend, and that stops every run."""
    (tmp_path / "pyproject.toml").write_text("[tool")
    with pytest.raises(
        SettingError, match=r"pyproject\.toml cannot be read by pytest \(Expected .*\); mend it\."
    ):
        ini_files.find(tmp_path)
    found = only(project_probes.project_settings(tmp_path))
    assert (found.state, found.needed, found.step) == ("limited", True, "mend it")


@pytest.mark.parametrize(
    ("line", "state", "needed", "said"),
    [
        ("llm_threads = 2", "ok", False, "threads: 2"),
        ("llm_threads = two", "limited", True, "llm_threads in the ini file is a whole number, got 'two'"),
        ("llm_treads = 2", "limited", False, "pytest knows no llm_treads"),
        ("testpaths = tests", "ok", False, "every setting is the default"),
    ],
)
def test_settings_are_read_as_a_run_reads_them(tmp_path, line, state, needed, said):
    """A value that no run takes is an obstacle, a name that pytest does not know a warning."""
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{line}\n")
    found = only(project_probes.project_settings(tmp_path))
    assert (found.state, found.needed) == (state, needed)
    assert said in found.sentence


def test_a_project_without_settings_hears_of_init(tmp_path):
    """The first command of a new user."""
    assert only(project_probes.project_settings(tmp_path)).step == "llmslim init"


@pytest.fixture
def here():
    """The fingerprint of this machine, as a run of `codecarbon` on one thread has it."""
    return machine_fingerprint(device="cpu", threads=1, dtype="float32", energy_source="codecarbon")


def found_in(folder):
    return only(project_probes.stored(folder, "cpu", "codecarbon"))


def test_baselines_of_this_machine_and_of_another(tmp_path, here):
    """Cost is compared where every word of the fingerprint is equal; else the words are named."""
    assert found_in(tmp_path).step == "write them with pytest --llm-update"
    record = sample_records.record()
    other = replace(record, fingerprint=here | {"cpu": "Z80", "threads": "9"})
    baselines.update(tmp_path / "baselines", [other])
    found = found_in(tmp_path)
    assert found.state == "limited"
    assert found.sentence == (
        f"{tmp_path / 'baselines'} holds 1, all of another machine (cpu {here['cpu']} here, Z80 there, "
        "threads 1 here, 9 there): quality can be compared, cost cannot"
    )
    same = replace(record, fingerprint=here, key=replace(record.key, recipe="int8"))
    baselines.update(tmp_path / "baselines", [same])
    assert found_in(tmp_path) == Finding(
        "baselines", "ok", f"{tmp_path / 'baselines'} holds 2, 1 of this machine, 1 of another"
    )


def test_baselines_that_were_edited_or_torn_are_told(tmp_path, here):
    """An edited line is a warning, a torn file stops every run."""
    baselines.update(tmp_path / "baselines", [replace(sample_records.record(), fingerprint=here)])
    path = only((tmp_path / "baselines").glob("*/*.json"))
    whole = path.read_text()
    path.write_text(whole.replace('"digest": "', '"digest": "0'))
    found = found_in(tmp_path)
    assert (found.state, found.needed) == ("limited", False)
    assert found.sentence.endswith("holds 1, 1 without a digest that fits")
    path.write_text(whole[: len(whole) // 2])
    found = found_in(tmp_path)
    assert (found.state, found.needed) == ("limited", True)
    assert "ends in the middle" in found.sentence

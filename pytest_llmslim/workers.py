"""pytest-xdist: what its controller gives each worker and learns from it, and how workers share devices.

A worker works under a share of its device's lease, whatever it runs, as soon as any test of the run is ours; the
session takes the lease alone to measure. Where there are several GPUs, each worker sees one of them.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
import tempfile
import uuid
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_llmslim.errors import MeasurementError, SettingError
from pytest_llmslim.lease import Lease
from pytest_llmslim.state import LEASE, is_ours, settings_of

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from contextlib import AbstractContextManager

    from pytest_llmslim.ledger import Ledger

MACHINE = "machine"
"""The lease of all that have no GPU for themselves."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
PINNED: pytest.StashKey[str] = pytest.StashKey()
"""The one GPU that this worker is to use."""
_GPU = re.compile(r"\+?\d+|GPU-|MIG-", re.ASCII)

UNGROUPED = (
    "--dist loadgroup grouped nothing here (pytest {} ignores the groups of pytest-xdist {}, its issue 1386), so each "
    "worker may load each model; use --dist loadfile, or pytest below 9.2."
)
STARTED = (
    "{} was to use GPU {} alone, but CUDA had been started before with all of them, and what runs on which could not "
    "be told: ask torch.cuda in tests and not while files are imported, or set PYTORCH_NVML_BASED_CUDA_CHECK=1."
)


def configure(config: pytest.Config) -> None:
    """Take part in a run of pytest-xdist, as its controller or as a worker."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Worker(config), "llmslim-worker")
    else:
        config.pluginmanager.register(Controller(config), "llmslim-controller")


class Controller:
    """Gives workers their seats and the folder of the leases, and names the tests in which they crashed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._folder = Path(tempfile.gettempdir()) / f"llmslim-lease-{uuid.uuid4().hex}"
        self._seats: dict[str, int] = {}
        self._tests: dict[str, list[str]] = {}
        self._crashed: dict[str, str] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:  # noqa: ANN401  # xdist's WorkerController
        """A seat, which the worker that replaces a crashed one takes over; leases are for workers on this machine."""
        taken = set(self._seats.values())
        seat = next(number for number in itertools.count() if number not in taken)
        self._seats[node.gateway.id] = seat
        spec = node.gateway.spec
        here = bool(spec.popen) and not spec.via
        node.workerinput["llmslim"] = {"seat": seat, "folder": str(self._folder) if here else ""}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # noqa: ANN401  # as above
        """Learn what a worker had to do and to say, and give its seat away."""
        self._seats.pop(node.gateway.id, None)
        told = getattr(node, "workeroutput", {}).get("llmslim-worker", {})
        self._tests |= told.get("tests", {})
        ledger = self._ledger()
        ledger.remarks += [remark for remark in told.get("remarks", ()) if remark not in ledger.remarks]

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """Note in which test a worker crashed: no report of ours tells."""
        self._crashed[crashitem] = str(report.longrepr).splitlines()[0]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Before the summary is written, tell which of our tests a crash left unmeasured."""
        for nodeid, reason in self._crashed.items():
            if nodeid in self._tests:
                label, *key = self._tests[nodeid]
                self._ledger().lost(label, tuple(key), reason)

    def pytest_unconfigure(self) -> None:
        """Remove the folder of the leases."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ledger(self) -> Ledger:
        return cast("Ledger", self._config.pluginmanager.get_plugin("llmslim-ledger"))


class Worker:
    """Runs tests under a share of a lease, and groups ours by model."""

    def __init__(self, config: pytest.Config) -> None:
        given: dict[str, Any] = config.workerinput  # type: ignore[attr-defined]
        self._config = config
        self._name, self._several = str(given["workerid"]), int(given["workercount"]) > 1
        self._seat = int(given.get("llmslim", {}).get("seat", 0))
        self._folder = str(given.get("llmslim", {}).get("folder", ""))

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, object, object]:
        """A worker that replaces a crashed one collects while others measure, so it waits for them."""
        joins = self._folder and Path(self._folder).is_dir()
        lease = self._open(MACHINE) if joins else None
        with lease.shared() if lease else nullcontext():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, object, object]:
        """Group ours before xdist looks at the groups, and look after it whether it did."""
        ours = [item for item in items if is_ours(item)]
        grouped = ours and self._config.getoption("loadgroup", False)
        if grouped:
            _group(ours)
        result = yield
        if ours:
            remarks = [_ungrouped()] if grouped and not any("@" in _tail(item) for item in ours) else []
            self._tell(ours, remarks)
            if self._several and self._folder:
                self._share()
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """Whatever a test does would disturb who measures."""
        with self._working():
            return (yield)

    def pytest_unconfigure(self) -> None:
        """Give the lease back."""
        if LEASE in self._config.stash:
            self._config.stash[LEASE].close()

    def _working(self) -> AbstractContextManager[None]:
        lease = self._config.stash.get(LEASE, None)
        return lease.shared() if lease else nullcontext()

    def _tell(self, ours: Sequence[pytest.Item], remarks: list[str]) -> None:
        """What the controller has to know of tests whose report may never come, as plain builtins."""
        from pytest_llmslim import collection

        keys = [(item, collection.case_of(item), collection.key_of(item)) for item in ours]
        tests = {
            item.nodeid: [case.id, key.suite, key.test, key.model, key.recipe]
            for item, case, key in keys
            if case and key
        }
        self._config.workeroutput["llmslim-worker"] = {"tests": tests, "remarks": remarks}  # type: ignore[attr-defined]

    def _share(self) -> None:
        """Take part in the lease of this worker's GPU, or else in that of the machine."""
        gpus = _gpus(settings_of(self._config).device)
        device = MACHINE
        if len(gpus) > 1:
            device = self._config.stash[PINNED] = os.environ[VISIBLE] = gpus[self._seat % len(gpus)]
        if LEASE in self._config.stash and device != MACHINE:
            self._config.stash[LEASE].close()
            del self._config.stash[LEASE]
        self._open(device)

    def _open(self, device: str) -> Lease | None:
        """The lease; `None` where processes of this system cannot share one, so that no cost is measured."""
        if LEASE not in self._config.stash:
            try:
                self._config.stash[LEASE] = Lease(Path(self._folder), device)
            except (ImportError, OSError):
                return None
        return self._config.stash[LEASE]


# Groups -----------------------------------------------------------------------------------------------------


def _group(ours: Sequence[pytest.Item]) -> None:
    """All tests of a model go to one worker, unless a test's own group says otherwise."""
    from pytest_llmslim import collection

    for item in ours:
        case = collection.case_of(item)
        if case and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(case.label))


def _tail(item: pytest.Item) -> str:
    """Of a node id, what is behind the parameters, which may have an @ of their own."""
    return item.nodeid.rpartition("]")[2]


def _ungrouped() -> str:
    from importlib.metadata import version

    return UNGROUPED.format(pytest.__version__, version("pytest-xdist"))


# GPUs -------------------------------------------------------------------------------------------------------


def _gpus(device: str) -> list[str]:
    """The GPUs that workers can be given one by one, as CUDA_VISIBLE_DEVICES names them; none for other devices.

    What the user has listed is kept as it is. Else they are UUIDs: CUDA and NVML may count GPUs in different orders.
    """
    if device not in ("auto", "cuda"):
        return []
    from pytest_llmslim.meters.gpus import open_nvml, visible_gpus

    listed = os.environ.get(VISIBLE)
    entries = [entry.strip() for entry in (listed or "").split(",")]
    named = list(itertools.takewhile(_GPU.match, entries))
    try:
        nvml = open_nvml()
        try:
            found = [gpu.uuid for gpu in visible_gpus(nvml, "cuda")]
        finally:
            nvml.nvmlShutdown()
    except MeasurementError:  # no NVML in this container, or one that cannot tell: the list stands
        return named if len(set(named)) == len(named) else []
    return found if listed is None else named[: len(found)]


def check_gpu(config: pytest.Config) -> None:
    """See that torch sees the one GPU that this worker was given; starts CUDA where it was given one.

    Raises:
        SettingError: CUDA was started before, by a file that was imported, and sees all of them.
    """
    gpu = config.stash.get(PINNED, None)
    if gpu is None:
        return
    torch = sys.modules["torch"]
    if torch.cuda.is_available() and torch.accelerator.device_count() > 1:
        raise SettingError(STARTED.format(config.workerinput["workerid"], gpu))  # type: ignore[attr-defined]

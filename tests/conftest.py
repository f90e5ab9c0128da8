"""What all tests share: a clean environment, and tiny real models on disk."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

# Modules with compiled parts are imported here, once. pytester forgets what an inner run imported, and a compiled
# module that is imported again and again brings the interpreter down (hypothesis._native does at exit).
import hypothesis  # noqa: F401
import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    """A developer's own LLMSLIM_* variables do not reach the tests."""
    for name in [name for name in os.environ if name.startswith("LLMSLIM_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)  # inner runs would write into the summary of CI


@pytest.fixture(autouse=True)
def _quick_inner_runs(request, monkeypatch):
    """An inner run ends with a full garbage collection; with torch's objects in this process it takes seconds."""
    if "pytester" in request.fixturenames:
        monkeypatch.setattr("_pytest.unraisableexception.gc_collect_harder", lambda iterations: None)


@pytest.fixture(scope="session")
def heavy():
    """What measuring imports; for tests in which an inner run measures in this process."""
    libraries = (
        "numpy",
        "torch",
        "transformers",
        "scipy.stats",
        "bitsandbytes",
        "codecarbon",
        "safetensors.torch",
    )
    ours = ("session", "bench", "ledger", "outputs", "pace", "resuming", "embedded.grammar")
    reports = ("reports.terminal", "reports.files")
    for name in (*libraries, *(f"pytest_llmslim.{room}" for room in (*ours, *reports))):
        importlib.import_module(name)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny random GPT-2 with a tokenizer, as a checkpoint folder."""
    from tiny_models import save_tiny

    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    save_tiny("gpt2", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory):
    """A text in the tiny model's vocabulary."""
    import random

    from tiny_models import WORDS

    draw = random.Random(1)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(200)))
    return path


@pytest.fixture
def small(tiny_folder, tiny_text):
    """Makes the options of a run that takes a second: the tiny model, eight windows of text."""

    def options(*args, model=tiny_folder, rounds=8):
        shape = f"--llm-tokens=512 --llm-window=64 --llm-rounds={rounds} --llm-device=cpu"
        return [*shape.split(), f"--llm-model={model}", f"--llm-text={tiny_text}", *args]

    return options


@pytest.fixture
def run(pytester, small, heavy, monkeypatch):
    """Runs pytest on the tiny model in this process, without an energy meter."""
    from pytest_llmslim import session
    from pytest_llmslim.meters.null import NullMeter

    monkeypatch.setattr(session, "choose_energy_meter", lambda device: NullMeter("switched off in this test"))
    return lambda *args, **options: pytester.runpytest("-p", "no:benchmark", *small(*args, **options))


@pytest.fixture
def llmslim(tmp_path, monkeypatch):
    """Calls the command `llmslim` in this process, in a folder of its own: `accept` writes where it stands."""
    from click.testing import CliRunner

    from pytest_llmslim.commands import main

    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])

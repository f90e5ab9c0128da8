"""The house: imports go downwards, and the plugin costs nothing until it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pytest_llmslim"

LAYERS = {
    "errors": 0, "units": 0, "records": 0, "readings": 0, "evaluation_records": 0,
    "run_records": 0, "eval_catalogue": 0, "encoding": 0, "score": 0, "registry": 0, "catalogue": 0,
    "statistics": 1, "planning": 1, "sequential": 1, "comparability": 1, "conditions": 1, "judging": 1,
    "regression": 1, "gate": 1, "proportions": 1, "evaluation_gate": 1,
    "baselines": 1, "baseline_files": 1, "absent": 1,
    "rounding": 1, "integrity": 1, "models": 1, "methods": 1, "evals": 1, "embedded": 1, "meters": 1, "paper": 1,
    "origin": 1, "runs": 1, "comparison": 1, "history": 1, "lease": 1, "json_schema": 1,
    "fingerprint": 1, "pairs": 1, "measure": 1, "reports": 1, "breakeven": 1, "noise": 1,
    "recipe": 2, "strategies": 2, "ablation": 2, "options": 2, "settings": 2, "evaluations": 2, "marker": 2,
    "hookspecs": 3, "state": 3, "collection": 3, "session": 3, "bench": 3, "benchmark_figures": 3, "ledger": 3,
    "fixtures": 3, "calibrate": 3, "published": 3, "deadline": 3, "conformance": 3, "candidates": 3, "examining": 3,
    "outputs": 3, "workers": 3, "resuming": 3, "pace": 3,
    "plugin": 4, "commands": 4, "__main__": 4,
}  # fmt: skip
"""Room to layer."""

PYTEST_ROOMS = {
    "hookspecs",
    "state",
    "fixtures",
    "plugin",
    "ledger",
    "benchmark_figures",
    "conformance",
    "workers",
}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """Modules that a file imports anywhere, except under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


SOURCES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    """No room imports one above it, and every room has its layer here."""
    room = room_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "pytest_llmslim" or len(parts) == 1 or parts[1] not in LAYERS:
            continue
        assert LAYERS[parts[1]] <= LAYERS[room], f"{room} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_plugin_side_knows_pytest(path):
    """Everything else works in a notebook; of types alone pytest may be read."""
    if room_of(path) not in PYTEST_ROOMS:
        assert "pytest" not in {name.split(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small(path):
    """A file that cannot be read in one sitting is two files."""
    assert path.read_text().count("\n") <= 400


def test_nothing_asserts_prints_or_unpickles():
    """Runtime checks raise; output goes through reports; no pickle is ever loaded."""
    for path in SOURCES:
        if path.name == "train.py":
            continue
        text = path.read_text()
        tree = ast.parse(text)
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), path
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not called & {"print", "pickle.load", "pickle.loads", "torch.load", "eval", "exec"}, path


def run_python(code, cwd):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


HEAVY = "torch transformers bitsandbytes scipy numpy codecarbon lm_eval pynvml"


def test_a_run_without_our_tests_loads_nothing_heavy_and_starts_nothing(tmp_path):
    """No torch, no room, no subprocess, no device, no file of ours."""
    (tmp_path / "test_plain.py").write_text("def test_plain(): pass")
    out = run_python(
        f"""
        import subprocess, sys
        started = []
        sys.addaudithook(lambda event, args: started.append(args) if event == "subprocess.Popen" else None)
        import pytest
        assert pytest.main(["-q", "-p", "no:benchmark", "-p", "no:hypothesispytest", "-p", "no:anyio"]) == 0
        loaded = set(sys.modules)
        print("HEAVY", sorted(loaded & set({HEAVY!r}.split())))
        print("OURS", sorted(name for name in loaded if name.startswith("pytest_llmslim.")))
        print("STARTED", started)
        """,
        tmp_path,
    )
    assert "HEAVY []" in out
    assert "STARTED []" in out
    allowed = {"errors", "fixtures", "hookspecs", "ledger", "options", "plugin", "settings", "state"}
    ours = ast.literal_eval(
        next(line for line in out.split("\n") if line.startswith("OURS")).removeprefix("OURS ")
    )
    assert {name.split(".")[1] for name in ours} <= allowed
    assert not (tmp_path / "llm-results").exists()


def test_collecting_the_suites_imports_no_torch():
    """Names of recipes are checked without the methods behind them."""
    out = run_python(
        f"""
        import sys, pytest
        assert pytest.main(["-q", "--collect-only", "suites"]) == 0
        print("HEAVY", sorted(set(sys.modules) & set({HEAVY!r}.split())))
        """,
        ROOT,
    )
    assert "test_standalone[embedded:gpt2-int4]" in out
    assert "HEAVY []" in out


def test_the_package_says_its_version():
    """Lazily, from the installed metadata."""
    import pytest_llmslim

    assert pytest_llmslim.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pytest_llmslim.nothing


def test_every_test_says_what_it_expects():
    """A docstring of one sentence on each test of this project."""
    for path in (ROOT / "tests").glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and node.col_offset == 0:
                assert ast.get_docstring(node), f"{path.name}: {node.name}"

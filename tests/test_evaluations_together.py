"""All evaluations in one run, on real small models and real questions."""

from __future__ import annotations

import importlib
import json

import pytest

from conftest import SHARED
from pytest_llmslim.eval_catalogue import BUILTIN_EVALUATIONS

STORIES = SHARED / "data/stories260K"
NOWHERE = {"qqp", "lambada", "slice"}
"""Without local data, and `slice`, which names a kind."""
WITH = {"classification": "classification(task=rte)", "generation": "generation(tokens=16,prompts=2)"}
NAMES = sorted({spec.name for spec in BUILTIN_EVALUATIONS} - NOWHERE)

# pytester forgets what an inner run imported, and what pyarrow and lm-eval register is registered once.
for library in ("datasets", "lm_eval.evaluator", "lm_eval.tasks", "lm_eval.models.huggingface"):
    importlib.import_module(library)

pytestmark = pytest.mark.skipif(not STORIES.exists(), reason="../shared/data is not here")


@pytest.mark.parametrize("model", [str(STORIES), "embedded:llama"], ids=["stories260K", "embedded-llama"])
def test_everything_runs(pytester, run, model):
    """Each evaluation of the catalogue gives a metric or figures, of both models, and the run passes."""
    test = """
        import pytest

        @pytest.mark.llm(recipe="int8")
        def test_it(llm):
            llm.measure()
    """
    pytester.makepyfile(test_own=test)
    asked = [argument for name in NAMES for argument in ("--llm-eval", WITH.get(name, name))]
    result = run(
        f"--llm-data={SHARED / 'data'}", "--llm-limit=4", "--llm-slices=all", *asked, model=model, rounds=2
    )

    result.assert_outcomes(passed=1)
    row = json.loads((pytester.path / "llm-results/summary.json").read_text())["rows"][0]
    found = {each["name"]: each for each in row["evaluations"]}
    assert set(NAMES) <= {name.partition("(")[0] for name in found}
    for name, each in found.items():
        left_out = any("left out" in note or "no sense" in note for note in each["notes"])
        assert each["figures"] or (each["metric"] and each["n"]) or left_out, name


def test_a_second_run_asks_nobody(pytester, run, tmp_path):
    """What the reference and the candidate answered is kept."""
    test = """
        import pytest

        @pytest.mark.llm(recipe="int8", eval="winogrande(shots=0)")
        def test_it(llm):
            llm.measure()
    """
    pytester.makepyfile(test_own=test)
    asked = [f"--llm-data={SHARED / 'data'}", "--llm-limit=8", f"--llm-cache={tmp_path}"]
    tokens, totals = [], []
    for _ in range(2):
        run(*asked, model=STORIES, rounds=2).assert_outcomes(passed=1)
        (found,) = json.loads((pytester.path / "llm-results/summary.json").read_text())["rows"][0][
            "evaluations"
        ]
        tokens.append(found["tokens"])
        totals.append((found["reference"], found["candidate"]))

    assert tokens[0] > 0
    assert tokens[1] == 0
    assert totals[0] == totals[1]

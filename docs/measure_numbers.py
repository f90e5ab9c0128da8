"""Measures what the pages of methods and evaluations show and `baselines/` does not hold; writes docs/numbers/.

    python docs/measure_numbers.py trained singles evaluations tasks --data /path/to/tasks --reader /path/to/stories260K

Each name is one run of pytest on one thread; its results are kept without texts. `tasks` needs local files, laid out as
`docs/evaluations.md` says, and a model that reads English.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from pytest_llmslim import runs
from pytest_llmslim.encoding import to_builtins
from pytest_llmslim.records import Record, Samples

ROOT: Final = Path(__file__).parents[1]
NUMBERS: Final = ROOT / "docs/numbers"
STANDALONE: Final = "suites/test_standalone.py"
TASKS: Final = (
    "arc_challenge hellaswag mmlu truthfulqa_mc2 winogrande triviaqa wikitext cola sst2 mrpc rte qnli mnli sms_spam "
    "classification(task=sst2)"
).split()
"""Those that lie in local files here."""

COMMANDS: Final = {
    "trained": "suites/trained.py",
    "singles": f"{STANDALONE} --llm-recipe=nf4 --llm-recipe=int8-weight --llm-recipe=layers(map='0-1,3') "
    "--llm-recipe=ah",
    "evaluations": f"{STANDALONE} --llm-recipe=int8 --llm-recipe=int4 --llm-eval=generation --llm-eval=latency "
    "--llm-slices=all",
    "tasks": f"{STANDALONE} --llm-recipe=int4 --llm-limit=100 --llm-slices=all "
    + " ".join(f"--llm-eval={task}" for task in TASKS),
}
"""What is asked of pytest, by the name of the file that it gives."""


def main() -> None:
    """Run what is asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="+", choices=COMMANDS)
    parser.add_argument("--data", help="local tasks, for `tasks`")
    parser.add_argument("--reader", help="a model that reads English, for `tasks`")
    asked = parser.parse_args()
    for name in asked.names:
        extra = []
        if name == "tasks":
            extra = [
                f"--llm-data={asked.data}",
                f"--llm-model={asked.reader}",
                f"--llm-text={_text(asked.data)}",
            ]
        measure(name, extra)


def measure(name: str, extra: list[str]) -> None:
    """One run, kept as one record a line.

    Raises:
        SystemExit: it could not run; a test that failed is no reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", *COMMANDS[name].split(), *extra, f"--llm-results={folder}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, env=environment, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{name}: pytest ended with {done.returncode}; nothing was written.")
        lines = [
            json.dumps(to_builtins(_slim(record)), sort_keys=True)
            for record in runs.read(Path(folder)).records
        ]
    NUMBERS.mkdir(exist_ok=True)
    (NUMBERS / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def _slim(record: Record) -> Record:
    """Without texts, and without what only intervals and pairing are made of."""
    bare = tuple(
        replace(each, worst=(), reference_right="", candidate_right="") for each in record.evaluations
    )
    return replace(record, samples=Samples(), evaluations=bare, verdicts=())


def _text(data: str) -> Path:
    return Path(data) / "wikitext-2-raw/wiki.test.raw"


if __name__ == "__main__":
    main()

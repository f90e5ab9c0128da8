"""What loading the plugin costs a project without LLM tests: the promise is under 5 ms.

Prints the best and the median of fresh processes, in which pytest itself is imported before the clock starts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

CODE = """
import time, argparse, pytest, _pytest.config
start = time.perf_counter()
import pytest_llmslim.plugin, pytest_llmslim.hookspecs, pytest_llmslim.fixtures, pytest_llmslim.ledger
print(1000 * (time.perf_counter() - start))
"""


def main(runs: int = 15) -> None:
    """Time `runs` fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        # As installed: compiled once, by a first process that does not count.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-c", CODE]
        found = [float(subprocess.check_output(command, env=environment)) for _ in range(runs + 1)][1:]
    print(
        f"plugin import: best {min(found):.2f} ms, median {statistics.median(found):.2f} ms of {runs} processes"
    )


if __name__ == "__main__":
    main()

"""What loading the plugin costs a project without LLM tests: the promise is under 5 ms.

Prints the best and the median of fresh processes, in which pytest itself is imported before the clock starts.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = """
import time, argparse, pytest, _pytest.config
start = time.perf_counter()
import pytest_llmslim.plugin, pytest_llmslim.hookspecs, pytest_llmslim.fixtures, pytest_llmslim.ledger
print(1000 * (time.perf_counter() - start))
"""


def main(runs: int = 15) -> None:
    """Time `runs` fresh processes."""
    found = [float(subprocess.check_output([sys.executable, "-c", CODE])) for _ in range(runs)]
    print(f"plugin import: best {min(found):.2f} ms, median {statistics.median(found):.2f} ms of {runs} processes")


if __name__ == "__main__":
    main()

"""A project whose method writes down each time that it builds: what was measured, and in which order, can be told."""

from __future__ import annotations

COUNTED = """
    import os
    import signal
    from dataclasses import dataclass
    from pathlib import Path

    from pytest_llmslim.methods import Applied

    @dataclass(frozen=True)
    class Counted:
        part: int = 2

        def compress(self, module, context):
            with open("built.txt", "a") as file:
                file.write(f"{self.part}\\n")
            kill = Path(f"kill{self.part}")
            if kill.exists():
                kill.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            for parameter in module.parameters():
                parameter.data.mul_(1 + self.part / 100)
            quick = Path("untimed").exists()
            return Applied(module, f"counted: {self.part}", simulated="not timed" if quick else "")
"""
CONFTEST = """
    import pytest
    from pytest_llmslim.registry import Spec

    @pytest.hookimpl(optionalhook=True)
    def pytest_llmslim_methods(config):
        return [Spec("counted", "counting:Counted", "counts how often it builds", ("part",), origin="tests")]
"""
OWN = """
    import pytest

    @pytest.mark.llm(recipes=[f"counted(part={part})" for part in range(1, 7)])
    def test_own(llm):
        llm.measure()
"""


def make(pytester, own):
    """Write the method, its conftest.py and a file of tests."""
    pytester.makepyfile(counting=COUNTED, conftest=CONFTEST, test_own=own)


def built(pytester):
    """Recipes that were built since this was asked last."""
    path = pytester.path / "built.txt"
    text = path.read_text() if path.exists() else ""
    path.write_text("")
    return [f"counted(part={part})" for part in text.split()]

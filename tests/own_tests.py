"""A test of one candidate as users write it, for whole runs through pytest."""

from __future__ import annotations

OWN_TEST = """
    import pytest

    @pytest.mark.llm(recipe="{recipe}"{more})
    def test_ships(llm):
        llm.measure()
"""


def own_test(pytester, recipe="int8", **marked):
    """Write `test_own.py` with one test; `marked` goes to its marker."""
    more = "".join(f", {name}={value!r}" for name, value in marked.items())
    pytester.makepyfile(test_own=OWN_TEST.format(recipe=recipe, more=more))

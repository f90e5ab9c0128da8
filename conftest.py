"""Loads the fixtures of the shipped suites; in the wheel this file lies inside `pytest_llmslim.suites`.

The paper's suites take long, so they run only when they are named: pytest collects what is named all the same.
"""

collect_ignore = ["paper" if __package__ else "suites/paper"]

pytest_plugins = [f"{__package__}.fixtures.measurement" if __package__ else "fixtures.measurement"]

"""Loads the fixtures of the shipped suites; in the wheel this file lies inside `pytest_llmslim.suites`."""

pytest_plugins = [f"{__package__}.fixtures.measurement" if __package__ else "fixtures.measurement"]

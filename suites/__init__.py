"""The benchmark suites that come with pytest-llmslim; never run by a bare `pytest`."""

"""pytest-llmslim answers one question: I compressed this language model, may I ship it?

The package imports nothing here: the plugin is loaded in every pytest run of every project
in which it is installed, and must cost nothing until a test asks for it.
"""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("pytest-llmslim")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

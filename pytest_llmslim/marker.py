"""The marker `llm`: what one test says about models, recipes and thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmslim.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterable

THRESHOLDS = (
    "max_perplexity_increase",
    "max_accuracy_drop",
    "max_time_increase",
    "max_energy_increase",
    "max_opt",
)
KEYWORDS = ("model", "models", "recipe", "recipes", "eval", "evals", *THRESHOLDS)


def read(markers: Iterable[Any]) -> dict[str, Any]:
    """The keywords of a test's `llm` markers, nearest first; `recipes` and `models` as tuples.

    Raises:
        SettingError: a positional argument, an unknown keyword, or both forms of one.
    """
    found: dict[str, Any] = {}
    for marker in markers:
        _check(marker)
        for key, value in _plural(marker.kwargs).items():
            found.setdefault(key, value)
    return found


def limits(markers: Iterable[Any]) -> dict[str, Any]:
    """The thresholds that `llm` markers among some markers give, as written, nearest first."""
    found: dict[str, Any] = {}
    for marker in markers:
        if marker.name == "llm":
            found = {key: value for key, value in marker.kwargs.items() if key in THRESHOLDS} | found
    return {key: value for key, value in found.items() if value is not None}


def _check(marker: Any) -> None:  # noqa: ANN401  # pytest.Mark
    if marker.args:
        raise SettingError(
            f"@pytest.mark.llm takes keywords only, got {marker.args[0]!r}; it knows "
            f"{', '.join(sorted(KEYWORDS))}."
        )
    unknown = sorted(set(marker.kwargs) - set(KEYWORDS))
    if unknown:
        raise SettingError(
            f"@pytest.mark.llm has no keyword {unknown[0]!r}; it knows {', '.join(sorted(KEYWORDS))}."
        )


def _plural(keywords: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in keywords.items() if value is not None}
    for one, many in (("model", "models"), ("recipe", "recipes"), ("eval", "evals")):
        if one in plain and many in plain:
            raise SettingError(f"@pytest.mark.llm takes {one} or {many}, got both.")
        if one in plain:
            plain[f"fixed_{many}"] = True  # one recipe is what the test is about; a list may be replaced
            plain[many] = (plain.pop(one),)
        if isinstance(plain.get(many), str):
            raise SettingError(
                f"@pytest.mark.llm({many}=...) is a list, got {plain[many]!r}; write {one}= for one."
            )
        if many in plain:
            plain[many] = tuple(str(item) for item in plain[many])
    return plain

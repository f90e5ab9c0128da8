"""`pytest --llm-published`, and what `suites/paper` prints after a run: the paper's tables and figures.

No model is loaded: published rows are scored from their own numbers, records from theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmslim.collection import model_label
from pytest_llmslim.errors import MissingPackageError
from pytest_llmslim.paper import scores, tables
from pytest_llmslim.paper.charts import charts, technique_order
from pytest_llmslim.paper.mapping import models_of
from pytest_llmslim.reports.figures import draw
from pytest_llmslim.reports.paper import compared_lines, figure_lines, published_lines
from pytest_llmslim.score import PROFILES
from pytest_llmslim.state import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import pytest

    from pytest_llmslim.paper.scores import Scored
    from pytest_llmslim.records import Record
    from pytest_llmslim.reports.terminal import Line
    from pytest_llmslim.settings import Settings

FIGURES = "figures"
"""In the folder of the results."""
LEVEL_ONE, LEVEL_TWO = "paper.test_level_one", "paper.test_level_two"
"""How the suites' names end in the key of a record."""
ON_EMBEDDED = (
    "measured on the embedded models, which stand for all of the paper's: the way is the paper's, the figures are not; "
    "--llm-models-map hub, or a file, names others"
)
WITHOUT_TASKS = (
    "the five logic tasks were left out at level two: they need --llm-data DIR, or models from the hub"
)
OTHER_TEXT = "perplexity is over {} here and over WikiText-2 in the paper; give its file with --llm-text"


def main(config: pytest.Config) -> int:
    """Score the published tables, print them and draw the figures; pytest's exit code.

    Raises:
        SlimError: a setting is unusable.
    """
    if not config.pluginmanager.hasplugin("terminalreporter"):
        config._do_configure()  # as pytest does for --help: without it there is no terminal to write to
    settings = settings_of(config)
    profiles = {profile.name: profile for profile in (*PROFILES.values(), settings.profile)}
    printed = _published(settings)
    out = [*published_lines(printed, profiles), *_drawn(printed, (), settings, config)]
    writer = config.get_terminal_writer()
    for text, markup in out:
        writer.line(text, **dict.fromkeys(markup, True))
    return 0


def after_run(records: Sequence[Record], config: pytest.Config) -> list[Line]:
    """The records of the paper's suites beside what was published, and where the figures are; draws them.

    Raises:
        SettingError: the models map is unusable.
    """
    settings = settings_of(config)
    measured = measured_of(records, settings)
    if not measured:
        return []
    printed = _published(settings)
    compared = compared_lines(printed, measured, settings.profile)
    notes: list[Line] = [(note, ("yellow",)) for note in _notes(records, settings)]
    return [*compared, *notes, *_drawn(printed, measured, settings, config)]


def measured_of(records: Iterable[Record], settings: Settings) -> list[Scored]:
    """Records of the paper's suites under the paper's names; one that stands for several models appears for each.

    Raises:
        SettingError: the models map is unusable.
    """
    models = models_of(settings.models_map)
    found: list[Scored] = []
    for record in records:
        found += [
            scores.measured(record, model, record.key.recipe, [settings.profile])
            for model in _names(record, models)
        ]
    order = dict.fromkeys(
        (*tables.LEVEL_ONE, *(row.model for row in tables.level_two()), *(s.model for s in found))
    )
    return [scored for model in order for scored in technique_order(found) if scored.model == model]


def _names(record: Record, models: Mapping[str, str]) -> list[str]:
    """The paper's names of a record's reference; of none of them, its own."""
    if record.key.suite.endswith(LEVEL_TWO):
        return [row.reference for row in tables.level_two() if row.model == record.key.recipe]
    if not record.key.suite.endswith(LEVEL_ONE):
        return []
    names = [name for name in tables.LEVEL_ONE if model_label(models[name]) == record.key.model]
    return names or [record.key.model]


def _notes(records: Iterable[Record], settings: Settings) -> list[str]:
    """What makes a run another one than the paper's."""
    ours = [record for record in records if record.key.suite.endswith((LEVEL_ONE, LEVEL_TWO))]
    out = [ON_EMBEDDED] if settings.models_map == "embedded" else []
    if any(record.key.suite.endswith(LEVEL_TWO) and not record.evaluations for record in ours):
        out.append(WITHOUT_TASKS)
    texts = {record.protocol.text for record in ours if not record.key.model.startswith("embedded:")}
    other = sorted(text for text in texts if "wiki" not in text.lower())
    return [*out, *(OTHER_TEXT.format(text) for text in other)]


def _published(settings: Settings) -> list[Scored]:
    return scores.published((*tables.level_one(), *tables.level_two()), [settings.profile])


def _drawn(
    printed: Sequence[Scored], measured: Sequence[Scored], settings: Settings, config: pytest.Config
) -> list[Line]:
    """Draw, and say where; or why not."""
    folder = settings.results / FIGURES
    try:
        files = draw(charts(printed, measured), folder)
    except MissingPackageError as error:
        return [(str(error), ("yellow",))]
    except OSError as error:
        where = f"{folder} cannot be written ({error.strerror}); give another folder with --llm-results."
        return [(where, ("red",))]
    return figure_lines(_near(folder, config), [path.stem for path in files])


def _near(path: Path, config: Any) -> str:  # noqa: ANN401  # pytest.Config
    here = config.invocation_params.dir
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

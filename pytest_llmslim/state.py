"""What a run keeps on pytest's config and items: keys of the stash, and what is made when first asked for.

Imported in every pytest run, so it imports the option table and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmslim import settings
from pytest_llmslim.errors import SlimError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.deadline import Deadline
    from pytest_llmslim.gate import Thresholds
    from pytest_llmslim.records import Key, Record
    from pytest_llmslim.session import Session

FIXTURE = "llm_case"
"""The fixture behind all of ours, by which our tests are known."""

SETTINGS = pytest.StashKey[settings.Settings]()
SESSION: pytest.StashKey[Session] = pytest.StashKey()
RECORDS: pytest.StashKey[list[Record]] = pytest.StashKey()
ERRORS = pytest.StashKey[list[str]]()
REFUSAL = pytest.StashKey[str]()
FORESEEN: pytest.StashKey[Sequence[tuple[Key, Thresholds]]] = pytest.StashKey()
DEADLINE: pytest.StashKey[Deadline] = pytest.StashKey()
COLLECTED = pytest.StashKey[dict[str, list[list[str]]]]()
"""Keys of our tests as plain lists, under `collected` and, without the deselected, under `running`."""


def is_ours(item: pytest.Item) -> bool:
    """Whether a collected test uses our fixtures."""
    return FIXTURE in getattr(item, "fixturenames", ())


def settings_of(config: pytest.Config) -> settings.Settings:
    """The run's settings, resolved once."""
    if SETTINGS not in config.stash:
        try:
            config.stash[SETTINGS] = settings.resolve(config)
        except SlimError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[SETTINGS]


def session_of(config: pytest.Config) -> Session:
    """The run's models, text and meter; made when the first test asks for them."""
    if SESSION not in config.stash:
        from pytest_llmslim.reports.progress import progress_of
        from pytest_llmslim.session import Session

        workers = int(getattr(config, "workerinput", {}).get("workercount", 1))
        config.stash[SESSION] = Session(settings_of(config), workers, config.stash.get(FORESEEN, ()))
        config.stash[SESSION].progress = progress_of(config)
    return config.stash[SESSION]

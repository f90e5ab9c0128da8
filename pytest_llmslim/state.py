"""What a run keeps on pytest's config and items: keys of the stash, and what is made when first asked for.

Imported in every pytest run, so it imports the option table and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmslim import settings
from pytest_llmslim.errors import SlimError
from pytest_llmslim.options import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.deadline import Deadline
    from pytest_llmslim.gate import Thresholds
    from pytest_llmslim.lease import Lease
    from pytest_llmslim.pace import Watch
    from pytest_llmslim.records import Key, Record
    from pytest_llmslim.resuming import Earlier
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
WATCH: pytest.StashKey[Watch | None] = pytest.StashKey()
LEASE: pytest.StashKey[Lease] = pytest.StashKey()
COLLECTED = pytest.StashKey[dict[str, list[list[str]]]]()
"""Keys of our tests as plain lists, under `collected` and, without the deselected, under `running`."""
FILES = pytest.StashKey[dict[str, str]]()
"""Digests of the files that hold our tests, by path."""
TOLD = pytest.StashKey[bool]()
"""Whether both were told to the controller."""
EARLIER: pytest.StashKey[Earlier | str] = pytest.StashKey()
TAKEN: pytest.StashKey[list[Record]] = pytest.StashKey()
"""Those of a test's records that were measured by the run that was stopped."""


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


def earlier_of(config: pytest.Config) -> Earlier | str:
    """With `--llm-resume` the run that goes on, else or where there is none a sentence; empty: it was not asked for.

    Raises:
        pytest.UsageError: it cannot go on under these settings.
    """
    if EARLIER not in config.stash:
        try:
            if settings.lookup(config, BY_NAME["resume"]).value:
                from pytest_llmslim import resuming

                config.stash[EARLIER] = resuming.find(settings_of(config), resuming.root_of(config))
            else:
                config.stash[EARLIER] = ""
        except SlimError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[EARLIER]


def watch_of(config: pytest.Config) -> Watch | None:
    """What shows how far the run is; `None` where nobody watches, as in a worker of xdist."""
    if WATCH not in config.stash:
        from pytest_llmslim import pace

        config.stash[WATCH] = None if hasattr(config, "workerinput") else pace.watch(config)
    return config.stash[WATCH]


def session_of(config: pytest.Config) -> Session:
    """The run's models, text and meter; made when the first test asks for them."""
    if SESSION not in config.stash:
        from pytest_llmslim.session import Session

        workers = int(getattr(config, "workerinput", {}).get("workercount", 1))
        if workers > 1:
            from pytest_llmslim.workers import check_gpu

            check_gpu(config)
        lease = config.stash.get(LEASE, None)
        config.stash[SESSION] = Session(settings_of(config), workers, config.stash.get(FORESEEN, ()), lease)
        watch = watch_of(config)
        config.stash[SESSION].progress = watch.line if watch else None
    return config.stash[SESSION]

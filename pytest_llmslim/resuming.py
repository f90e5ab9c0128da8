"""Going on with a run that was stopped: what it measured is taken from its folder of results, the rest is measured.

A record is taken as it is, verdicts included, where nothing has changed on which it rests: the settings and the version
of pytest-llmslim (else the run is refused), and the files of its test, its text, its model, its baselines and its
machine (else it is measured again). What else a test imports is not watched.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from pytest_llmslim import __version__, runs
from pytest_llmslim.baseline_files import anchor_path_of, path_of
from pytest_llmslim.collection import key_of
from pytest_llmslim.errors import RunError
from pytest_llmslim.fingerprint import machine_fingerprint
from pytest_llmslim.options import OPTIONS
from pytest_llmslim.settings import as_text
from pytest_llmslim.state import settings_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    import pytest

    from pytest_llmslim.records import Key, Record
    from pytest_llmslim.run_records import Origin, Run
    from pytest_llmslim.settings import Settings

SOURCES: Final = "sources.json"
"""In the folder of results: a digest of every file that holds tests of the run, of their conftest.py files, and of
their baselines."""
OF_OUTPUT: Final = frozenset(
    "results resume report markdown csv json timeout cache anchor calibrate conformance published".split()
)
"""Settings that change no record."""

NOTHING: Final = "--llm-resume: there is nothing to go on with in {}, {}: all is measured."
STOPPED: Final = (
    "{} of {} tests ended before the run was stopped; with --llm-resume the same command goes on there."
)
UNWRITTEN: Final = (
    "--llm-update wrote no baseline, since the run was interrupted: let it end, or name the tests that are to be "
    "accepted; what was measured is in {}/results.jsonl."
)


class Earlier:
    """What a run measured before it was stopped.

    Args:
        run: as it was left.
        sources: digests of its files of tests, by path.
        root: to which these paths are relative.
        settings: of the run that goes on.
    """

    def __init__(self, run: Run, sources: Mapping[str, str], root: Path, settings: Settings) -> None:
        self.origin, self.sources = run.origin, sources
        self.records: dict[Key, Record] = {record.key: record for record in run.records}
        self.remarks: list[str] = []
        self._root, self._settings = root, settings
        self._machine: dict[str, str] = {}

    def of_test(self, path: Path, key: Key, model: str, device: str) -> Record | None:
        """The record of a measurement, `None` where it has to be made; why it has to be made again is a remark.

        Args:
            path: of the file that holds the test.
            key: of the measurement.
            model: the reference, as the user named it.
            device: torch device on which the test would measure.
        """
        record = self.records.get(key)
        if record is None:
            return None
        reason = (
            self._changed_file(path)
            or self._changed_baselines(key)
            or self._changed_model(model, key.model)
            or self._other_machine(record, device)
        )
        if not reason:
            return record
        if reason not in self.remarks:
            self.remarks.append(reason)
        return None

    def beyond(self, files: Container[str]) -> bool:
        """Whether some of the files of the run that are still there were not looked at this time.

        Args:
            files: paths of those that were.
        """
        return any(name not in files and (self._root / name).exists() for name in self.sources)

    def known(self, files: Mapping[str, str]) -> dict[str, str]:
        """Digests to be left for a further part of the run, from those of this one.

        Without those of baselines and conftest.py files that were not there when earlier records were measured.
        """
        new = {name for name in files if name not in self.sources}
        stored = {
            _name(path, self._root) for key in self.records for path in baselines_of(key, self._settings)
        }
        late = {name for name in new if name in stored or Path(name).name == "conftest.py"}
        return {name: digest for name, digest in files.items() if name not in late} | dict(self.sources)

    def kept(self, met: Sequence[Key], failed: Container[tuple[str, ...]] | None) -> list[Key]:
        """Records that this part of the run did not meet, and that stay for a further one.

        Args:
            met: keys of what it took and measured.
            failed: tests that did not pass, as plain keys; `None`: not all tests were run.
        """
        left = [key for key in self.records if key not in set(met)]
        if failed is None:
            return left
        return [
            key
            for key in left
            if any((key.suite, key.test, key.model, recipe) in failed for recipe in (key.recipe, ""))
        ]

    def _changed_file(self, path: Path) -> str:
        for name, digest in sources([path], self._root).items():
            if self.sources.get(name) != digest:
                return f"{name} was changed since the run was stopped: its tests are measured again."
        return ""

    def _changed_baselines(self, key: Key) -> str:
        for path in baselines_of(key, self._settings):
            name = _name(path, self._root)
            if self.sources.get(name, "") != _digest(path):
                return f"{name} was changed since the run was stopped: what is held against it is measured again."
        return ""

    def _changed_model(self, model: str, label: str) -> str:
        began = datetime.fromisoformat(self.origin.started).timestamp() if self.origin.started else 0.0
        if newest(Path(model)) >= began + 1:  # the start is known in whole seconds
            return f"files of {label} were changed since the run began: its candidates are measured again."
        return ""

    def _other_machine(self, record: Record, device: str) -> str:
        """That a record with a cost was measured elsewhere; empty where it was not, or has no cost."""
        if not (record.time.known or record.energy.known):
            return ""
        there, settings = record.fingerprint, self._settings
        if not self._machine:  # without its meter, which is not opened for this
            self._machine = machine_fingerprint(
                device=device, threads=settings.threads, dtype=settings.dtype, energy_source=""
            )
        here = self._machine | {"energy_source": there.get("energy_source", "")}
        name = next((name for name in there if there[name] != here.get(name, "")), None)
        if name is None:
            return ""
        return (
            f"the run was stopped on another machine ({name} was {there[name]}, and is {here.get(name, 'unknown')}): "
            "what has a cost is measured again."
        )


def find(settings: Settings, root: Path) -> Earlier | str:
    """What there is to go on with, or a sentence why there is nothing.

    Args:
        settings: of the run that is to go on.
        root: of the tests.

    Raises:
        RunError: what there is cannot be read, or was measured under other settings or by another version.
    """
    folder = settings.results
    if not (folder / runs.RESULTS).exists():
        return NOTHING.format(folder, "which has no results.jsonl")
    if not (folder / runs.RUN).exists():
        return NOTHING.format(folder, "whose results.jsonl has no run.json that says how it was measured")
    run = runs.read(folder)
    if not run.interrupted:
        return NOTHING.format(folder, f"whose run of {run.origin.started} came to its end")
    _check(run, settings)
    try:
        known = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    return Earlier(run, known if isinstance(known, dict) else {}, root, settings)


def _check(run: Run, settings: Settings) -> None:
    folder, version = settings.results, run.origin.version
    if version != __version__:
        raise RunError(
            f"--llm-resume: the run in {folder} was measured by pytest-llmslim {version or 'of an unknown version'}, "
            f"and this is {__version__}; measure anew without --llm-resume."
        )
    for option in OPTIONS:
        if option.name in OF_OUTPUT:
            continue
        default = as_text(option.default)
        there = run.origin.settings.get(option.name, default)
        here = settings.changed.get(option.name, default)
        if there != here:
            raise RunError(
                f"--llm-resume: {option.flag} was {there or 'not given'} in the run in {folder} and is "
                f"{here or 'not given'} now; give it as it was, or measure anew without --llm-resume."
            )
    digest = "" if settings.text is None else _digest(settings.text)
    if digest and any(record.protocol.text_sha256 != digest for record in run.records):
        raise RunError(
            f"--llm-resume: {settings.text} is another text than the run in {folder} was measured on; give that one, "
            "or measure anew without --llm-resume."
        )


def told(earlier: Earlier, taken: int, now: Origin, records: int, kept: int) -> Iterator[str]:
    """Sentences for the summary.

    Args:
        earlier: the run that went on.
        taken: how many of its records were.
        now: of this part of the run.
        records: how many the run has now.
        kept: how many stay in the file besides.
    """
    there = earlier.origin
    yield f"{taken} of {records} records are taken from the run of {there.started}, which was stopped."
    if taken and (there.commit, there.changed) != (now.commit, now.changed):
        yield (
            f"The project was at {_state(there)} then and is at {_state(now)} now; of that, only files of tests and "
            "conftest.py files were looked at."
        )
    if kept:
        yield (
            f"{kept} of its records were not asked for this time, or their tests failed before, and stay in "
            f"{runs.RESULTS} for --llm-resume."
        )


def _state(origin: Origin) -> str:
    return f"{origin.commit[:12] or 'no commit'}{' with changes' if origin.changed else ''}"


# Files ------------------------------------------------------------------------------------------------------


def sources(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Digests of files of tests and of the conftest.py files that pytest loads for them, by path from `root`."""
    found: dict[Path, None] = {}
    for path in dict.fromkeys(paths):
        found[path] = None
        for folder in path.parents:
            found[folder / "conftest.py"] = None
            if folder == root:
                break
    return {_name(path, root): digest for path in found if (digest := _digest(path))}


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def baselines_of(key: Key, settings: Settings) -> tuple[Path, ...]:
    """The files with which a measurement is compared; none where it writes them."""
    if settings.update:
        return ()
    return path_of(settings.baseline, key), anchor_path_of(settings.baseline, key)


def _digest(path: Path) -> str:
    """sha256 of a file; empty where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def newest(path: Path) -> float:
    """When a file, or the last of those in a folder, was changed, in seconds since 1970; 0 where there is none."""
    try:
        files = [*path.iterdir()] if path.is_dir() else [path]
        return max((file.stat().st_mtime for file in files), default=0.0)
    except OSError:
        return 0.0


class Write(Protocol):
    """Writes a file of the folder of results."""

    def __call__(self, name: str, text: str, *, append: bool = False) -> bool:
        """Write it whole, or to its end; whether that was done."""


class Book:
    """`results.jsonl`: a record a line, on disk as soon as it has arrived, and only one for each key.

    Args:
        write: writes a file of the folder of results.
        files: digests of the files that hold tests of the run, by path.
        earlier: the run that goes on, whose records the file holds already.
    """

    def __init__(self, write: Write, files: Mapping[str, str], earlier: Earlier | None) -> None:
        self._write = write
        self._lines = (
            {} if earlier is None else {key: runs.line_of(found) for key, found in earlier.records.items()}
        )
        self._whole = False
        # Of a file that has changed since, records of both versions may stand here: those of the new are measured
        # again if the run is stopped once more.
        known = dict(files) if earlier is None else earlier.known(files)
        write(SOURCES, json.dumps(known, indent=1, sort_keys=True) + "\n")

    def add(self, record: Record) -> None:
        """Take a record in; the file loses nothing but a last line that was cut off."""
        line = runs.line_of(record)
        known = self._lines.pop(record.key, None)
        self._lines[record.key] = line
        if self._whole and known is None:
            self._whole = self._write(runs.RESULTS, line, append=True)
        elif line == known:
            self._whole = False  # it stands there in another place
        else:
            self._all()

    def end(self, keys: Iterable[Key]) -> None:
        """Leave these records in the file, in this order, and none of another run that wrote there meanwhile."""
        self._lines = {key: self._lines[key] for key in keys}
        self._all()

    def _all(self) -> None:
        # What failed half-way (a full disk) is written anew with the next record.
        self._whole = self._write(runs.RESULTS, "".join(self._lines.values()))


def files_of(items: Sequence[pytest.Item], config: pytest.Config) -> dict[str, str]:
    """Digests of the files of some tests and of their baselines, by path."""
    root, keys = root_of(config), filter(None, map(key_of, items))
    stored = {path for key in keys for path in baselines_of(key, settings_of(config))}
    digests = {_name(path, root): _digest(path) for path in stored}
    return sources((item.path for item in items), root) | {
        name: each for name, each in digests.items() if each
    }


def root_of(config: pytest.Config) -> Path:
    """The project's folder, as `settings.resolve` takes it: pytest's own may lie above it."""
    return Path(config.inipath).parent if config.inipath else Path(config.invocation_params.dir)

"""What `llmslim doctor` asks of the installation, of data on this machine, and of the project."""

from __future__ import annotations

import importlib
import sys
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packaging.requirements import Requirement

from pytest_llmslim import __version__, baseline_files, baselines
from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.commands import ini_files
from pytest_llmslim.commands.findings import IMPORT_S, Finding, Probe, told
from pytest_llmslim.errors import BaselineError, EvaluationError, ModelError, SettingError
from pytest_llmslim.fingerprint import machine_fingerprint
from pytest_llmslim.meters.window import words
from pytest_llmslim.models import embedded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_llmslim.commands.findings import State
    from pytest_llmslim.settings import Settings

DISTRIBUTION: Final = "pytest-llmslim"
HUB_S: Final = 3.0
USES: Final = {
    "xdist": "pytest -n, several workers or GPUs",
    "figures": "the figures of --llm-published",
    "report": "--llm-report and `llmslim report`",
}
"""What needs an extra; methods that need one say so in the catalogue."""
CONTRIBUTORS: Final = ("dev", "docs", "llmc")
"""Extras for work on pytest-llmslim itself."""
SHOWN: Final = 4


def before() -> dict[str, tuple[Probe, ...]]:
    """Groups of probes of what is installed, by title."""
    return {
        "what a run needs": (
            Probe("pytest-llmslim", installation),
            Probe("torch", lambda: imported("torch"), IMPORT_S),
            Probe("transformers", lambda: imported("transformers"), IMPORT_S),
            Probe("embedded models", embedded_models),
        ),
    }


def after(folder: Path, device: str, energy_source: str) -> dict[str, tuple[Probe, ...]]:
    """Groups of probes of extras, data and project, by title.

    Args:
        folder: of the project.
        device: a torch device that a run there would take.
        energy_source: of the meter that a run would take.
    """
    return {
        "extras": (Probe("extras", extras),),
        "data": (
            Probe("hub", hub, HUB_S + 2),
            Probe("hub cache", hub_cache),
            Probe("local tasks", lambda: local_tasks(folder)),
        ),
        f"project {folder}": (
            Probe("settings", lambda: project_settings(folder)),
            Probe("baselines", lambda: stored(folder, device, energy_source)),
            Probe("xdist", xdist),
        ),
    }


# Installation -----------------------------------------------------------------------------------------------


def installation() -> list[Finding]:
    """Versions of what runs, and whether every package that is needed has a version that fits."""
    text = f"{__version__} on Python {sys.version.split()[0]} and pytest {_version('pytest')}"
    needed = [need for need in _requirements() if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong = [fault for fault in map(_fault, needed) if fault]
    if not wrong:
        return [Finding(DISTRIBUTION, "ok", f"{text}, {len(needed)} packages at versions that fit")]
    step = f"pip install {' '.join(_quoted(need) for need in needed if _fault(need))}"
    return [Finding(DISTRIBUTION, "limited", f"{text}, and {', '.join(wrong)}", step)]


def imported(name: str) -> list[Finding]:
    """Whether a library without which nothing runs can be imported."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken build raises whatever it finds
        what = "is not installed" if _version(name) is None else f"cannot be imported: {words(error)}"
        return [
            Finding(name, "missing", f"{name} {what}", f"pip install --force-reinstall {name}", needed=True)
        ]
    return [Finding(name, "ok", str(_version(name)), needed=True)]


def embedded_models() -> list[Finding]:
    """Whether the models that come with the package are there, weights included."""
    try:
        folders = [embedded.folder(name) for name in embedded.EMBEDDED]
    except ModelError as error:
        return [told("embedded models", "missing", str(error), needed=True)]
    bare = [path for path in folders if not any(path.glob("*.safetensors"))]
    if bare:
        step = f"pip install --force-reinstall --no-deps {DISTRIBUTION}"
        return [Finding("embedded models", "missing", f"{bare[0]} has no weights", step, needed=True)]
    names = ", ".join(f"{embedded.PREFIX}{name}" for name in embedded.EMBEDDED)
    return [Finding("embedded models", "ok", names, needed=True)]


def extras() -> list[Finding]:
    """Every optional package, with what needs it."""
    found = []
    for need in _requirements():
        extra = _extra(need)
        if not extra or extra in CONTRIBUTORS:
            continue
        methods = ", ".join(spec.name for spec in BUILTIN_METHODS if spec.extra == extra)
        use = USES.get(extra) or f"the methods {methods}"
        fault = _fault(need)
        if not fault:
            found.append(Finding(extra, "ok", f"{need.name} {_version(need.name)}, for {use}"))
            continue
        state: State = "missing" if _version(need.name) is None else "limited"
        found.append(
            Finding(extra, state, f"{fault}; it is for {use}", f"pip install '{DISTRIBUTION}[{extra}]'")
        )
    return found


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]


def _extra(need: Requirement) -> str:
    """The extra that a requirement belongs to; empty: all installations."""
    names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or ()
    if need.marker is None or need.marker.evaluate({"extra": ""}):
        return ""
    return next((name for name in names if need.marker.evaluate({"extra": name})), "")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fault(need: Requirement) -> str:
    """Why a requirement is not met; empty where it is."""
    version = _version(need.name)
    if version is None:
        return f"{need.name} is not installed"
    fits = need.specifier.contains(version, prereleases=True)
    return "" if fits else f"{need.name} {version} is not {need.specifier}"


def _quoted(need: Requirement) -> str:
    return f"'{need.name}{need.specifier}'"


# Data -------------------------------------------------------------------------------------------------------


def hub() -> list[Finding]:
    """Whether the Hugging Face hub, or what stands for it, answers."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    step = "pass a folder or a .gguf file with --llm-model, and tasks with --llm-data; embedded models need neither"
    if constants.HF_HUB_OFFLINE:
        return [
            Finding(
                "hub", "limited", "it is not asked, by HF_HUB_OFFLINE", f"unset HF_HUB_OFFLINE, or {step}"
            )
        ]
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_S):
            pass
    except urllib.error.HTTPError:
        pass  # an answer all the same
    except (OSError, ValueError) as error:
        reason = words(getattr(error, "reason", error))
        return [Finding("hub", "missing", f"{constants.ENDPOINT} cannot be reached ({reason})", step)]
    return [Finding("hub", "ok", f"{constants.ENDPOINT} answers")]


def hub_cache() -> list[Finding]:
    """Models and data sets that are there without a network."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    folder = Path(constants.HF_HUB_CACHE)
    found = {kind: sorted(_cached(folder, kind)) for kind in ("models", "datasets")}
    if not any(found.values()):
        step = "nothing is needed for embedded models and folders; else a first run downloads it"
        return [Finding("hub cache", "missing", f"{folder} holds no model", step)]
    text = ", ".join(f"{len(names)} {kind}{_some(names)}" for kind, names in found.items() if names)
    return [Finding("hub cache", "ok", f"{folder} holds {text}")]


def _cached(folder: Path, kind: str) -> Iterable[str]:
    start = f"{kind}--"
    return (path.name.removeprefix(start).replace("--", "/") for path in folder.glob(f"{start}*"))


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"


def local_tasks(folder: Path) -> list[Finding]:
    """The tasks in the folder of `llm_data`."""
    data = ini_files.resolved(folder).data
    if data is None:
        step = "set llm_data to a folder of tasks where there is no hub (docs/evaluations.md has the layouts)"
        return [Finding("local tasks", "missing", "llm_data is not set", step)]
    if not data.is_dir():
        step = "give the path of a folder with llm_data or --llm-data"
        return [
            Finding("local tasks", "missing", f"llm_data is {data}, which is no folder", step, needed=True)
        ]
    from pytest_llmslim.evals import lm_names

    names = sorted(name for name in lm_names.named() if _is_local(name, data))
    if names:
        return [Finding("local tasks", "ok", f"{data} holds {len(names)} tasks of lm-eval{_some(names)}")]
    step = "lay the files out as docs/evaluations.md shows"
    return [Finding("local tasks", "limited", f"{data} holds no task of lm-eval in a known layout", step)]


def _is_local(task: str, data: Path) -> bool:
    from pytest_llmslim.evals import local_data

    try:
        return local_data.find(task, data) is not None
    except EvaluationError:  # it has a layout, and its files are not there
        return False


# Project ----------------------------------------------------------------------------------------------------


def project_settings(folder: Path) -> list[Finding]:
    """Where settings are, what they change, and whether pytest would take them."""
    try:
        ini = ini_files.find(folder)
        changed = ini_files.resolved(folder).changed
    except SettingError as error:
        return [told("settings", "limited", str(error), "mend it: no run starts with it", needed=True)]
    if not changed and (ini is None or not ini.table):
        return [Finding("settings", "missing", "no settings of pytest in or above it", "llmslim init")]
    text = ", ".join(f"{name}: {value}" for name, value in changed.items()) or "every setting is the default"
    unknown = _unknown(ini)
    if unknown:
        step = "see pytest --help for the names"
        return [Finding("settings", "limited", f"{text}; pytest knows no {', '.join(unknown)}", step)]
    return [Finding("settings", "ok", f"{ini.path if ini else 'environment'}: {text}")]


def _unknown(ini: ini_files.Ini | None) -> list[str]:
    """Names that look like settings of ours and are none."""
    from pytest_llmslim.options import OPTIONS

    known = {option.ini for option in OPTIONS}
    return [name for name in (ini.values if ini else ()) if name.startswith("llm_") and name not in known]


def stored(folder: Path, device: str, energy_source: str) -> list[Finding]:
    """The baselines: how many, whether they can be read, and whether cost can be compared with them here."""
    try:
        settings = ini_files.resolved(folder)
        rolling = baselines.load_all(settings.baseline).rolling
        by_hand = _edited(settings.baseline)
    except SettingError:
        return []  # told of by `project_settings`
    except BaselineError as error:
        return [told("baselines", "limited", str(error), needed=True)]
    where = settings.baseline
    if not rolling:
        return [Finding("baselines", "missing", f"{where} holds none", "write them with pytest --llm-update")]
    if by_hand:
        step = (
            "llmslim check names them; restore them from version control, or measure again with --llm-update"
        )
        return [
            Finding(
                "baselines",
                "limited",
                f"{where} holds {len(rolling)}, {by_hand} without a digest that fits",
                step,
            )
        ]
    here = _fingerprint(settings, device, energy_source)
    unlike = [_differences(record.fingerprint, here) for record in rolling.values()]
    text = f"{where} holds {len(rolling)}"
    alike = unlike.count("")
    if alike:
        rest = f", {len(unlike) - alike} of another" if alike < len(unlike) else ""
        return [Finding("baselines", "ok", f"{text}, {alike} of this machine{rest}")]
    step = "write baselines on the machine that gates, or gate quality alone here"
    return [Finding("baselines", "limited", f"{text}, all of another machine ({unlike[0]}): quality can be compared, "
                    "cost cannot", step)]  # fmt: skip


def _edited(directory: Path) -> int:
    """Lines that were edited by hand."""
    return sum(len(baseline_files.edited(directory, path)) for path in directory.glob("*/*.json"))


def _fingerprint(settings: Settings, device: str, energy_source: str) -> dict[str, str]:
    return machine_fingerprint(
        device=device, threads=settings.threads, dtype=settings.dtype, energy_source=energy_source
    )


def _differences(then: dict[str, str], now: dict[str, str]) -> str:
    """In what two fingerprints differ; empty where they are equal."""
    names = [name for name in sorted(now.keys() | then.keys()) if now.get(name) != then.get(name)]
    return ", ".join(
        f"{name} {now.get(name, 'absent')} here, {then.get(name, 'absent')} there" for name in names
    )


def xdist() -> list[Finding]:
    """Whether `--dist loadgroup` keeps the tests of a model on one worker."""
    from packaging.version import Version

    plugin, pytest = _version("pytest-xdist"), _version("pytest")
    if plugin is None or pytest is None:
        return []
    if Version(pytest) >= Version("9.2") and Version(plugin) <= Version("3.8.0"):
        text = f"pytest-xdist {plugin} with pytest {pytest} silently does not group under --dist loadgroup"
        step = "run without -n, or install pytest<9.2, or a later pytest-xdist (its issue 1386)"
        return [Finding("loadgroup", "limited", text, step)]
    return [Finding("loadgroup", "ok", f"pytest-xdist {plugin} groups with pytest {pytest}")]

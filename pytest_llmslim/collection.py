"""From options and markers to parametrised tests, in the order that loads each model once.

Nothing here imports torch: names of recipes are checked through the registry's lazy specs. Only evaluations are made
here, so that bad parameters are found before anything runs; the modules of some import torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_llmslim import marker
from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.errors import SettingError, SlimError
from pytest_llmslim.recipe import Recipe, parse
from pytest_llmslim.records import Key
from pytest_llmslim.registry import Registry
from pytest_llmslim.state import (
    COLLECTED,
    FILES,
    FIXTURE,
    RECORDS,
    TAKEN,
    TOLD,
    earlier_of,
    is_ours,
    settings_of,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    import pytest

    from pytest_llmslim.evals import Comparator, Evaluator
    from pytest_llmslim.gate import Thresholds
    from pytest_llmslim.recipe import Step
    from pytest_llmslim.settings import Settings


class Case(NamedTuple):
    """What one parametrised test is about.

    Args:
        recipe: `None` for a test that brings its own candidate.
        keywords: of the test's markers.
        part: whether the recipe is only a part of one that the test is about, measured for `--llm-ablate`: it has
            no limits to keep and no baseline.
        evaluations: beyond perplexity, as asked for and made.
    """

    model: str
    recipe: Recipe | None
    registry: Registry
    keywords: dict[str, Any]
    part: bool = False
    evaluations: tuple[tuple[Step, Evaluator | Comparator], ...] = ()

    @property
    def label(self) -> str:
        """The model's name as shown: an id as it is, a path by its last part."""
        return model_label(self.model)

    @property
    def id(self) -> str:
        """The test's parameter id."""
        return f"{self.label}-{self.recipe.text}" if self.recipe else self.label


def model_label(name: str) -> str:
    """How a model is called in tables and baselines: ids as they are, paths by their last part."""
    path = Path(name)
    if name.startswith("embedded:") or not (path.is_absolute() or path.exists() or name.startswith(".")):
        return name
    return path.resolve().stem if path.suffix == ".gguf" else path.resolve().name


def registry_for(node: Any) -> Registry:  # noqa: ANN401  # an item, or pytest's private FunctionDefinition
    """Methods visible to a test: ours, and those of its own and its parents' conftest.py files."""
    contributed = node.ihook.pytest_llmslim_methods(config=node.config)
    return Registry([*BUILTIN_METHODS, *(spec for specs in contributed for spec in specs)])


def evaluations_for(
    node: Any,  # noqa: ANN401  # an item, or pytest's private FunctionDefinition
    settings: Settings,
    keywords: dict[str, Any],
) -> tuple[tuple[Step, Evaluator | Comparator], ...]:
    """The evaluations of a test, ours and those that its and its parents' conftest.py files bring.

    Raises:
        SlimError: one is not known, or has bad parameters.
    """
    marked = keywords.get("evals", ())
    if not (marked or settings.evaluations or settings.slices or settings.quality):
        return ()
    from pytest_llmslim import evaluations
    from pytest_llmslim.eval_catalogue import BUILTIN_EVALUATIONS

    contributed = node.ihook.pytest_llmslim_evals(config=node.config)
    specs = [*BUILTIN_EVALUATIONS, *(spec for specs in contributed for spec in specs)]
    registry = Registry(specs, "evaluation")
    steps = evaluations.wanted(settings, marked, registry)
    evaluations.check_quality(settings.quality, [step.text for step in steps])
    return tuple((step, evaluations.instantiate(step, registry)) for step in steps)


def cases(
    settings: Settings,
    registry: Registry,
    keywords: dict[str, Any],
    evaluations: tuple[tuple[Step, Evaluator | Comparator], ...] = (),
) -> list[Case]:
    """The cases of one test; empty when `--llm-recipe` names nothing that the test takes.

    Raises:
        SlimError: a recipe does not parse or names an unknown method.
    """
    listed = [parse(text, registry) for text in keywords.get("recipes", ())]
    asked = [parse(text, registry) for text in settings.recipes]
    recipes: Sequence[Recipe | None] = (
        narrow(listed, asked, fixed="fixed_recipes" in keywords) if listed else [None]
    )
    models = tuple(dict.fromkeys(keywords.get("models") or settings.models))
    labels = [model_label(model) for model in models]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise SettingError(
            f"Two models are both called {twice}, and their results could not be told apart; rename a folder."
        )
    found = [
        Case(model, recipe, registry, keywords, evaluations=evaluations)
        for model in models
        for recipe in recipes
    ]
    return _with_parts(found) if settings.ablate else found


def _with_parts(wholes: Sequence[Case]) -> list[Case]:
    """The cases with what has to be measured to say what each step of their recipes contributes."""
    from pytest_llmslim.ablation import parts

    found = {(case.model, case.recipe): case for case in wholes}
    for case in wholes:
        for recipe in parts(case.recipe, case.registry) if case.recipe else []:
            part = case._replace(recipe=recipe, part=True, evaluations=())
            found.setdefault((case.model, recipe), part)
    return list(found.values())


def narrow(listed: Sequence[Recipe], asked: Sequence[Recipe], *, fixed: bool = False) -> list[Recipe]:
    """The recipes a test runs: its list, or what was asked for on the command line.

    A recipe from the list narrows it. Any other goes to the tests whose lists hold recipes of as many steps
    (one, or several), so that it runs once and where its like runs; never to a test that is about one recipe.
    """
    if not asked:
        return list(listed)
    texts = {recipe.text for recipe in listed}
    kinds = set() if fixed else {len(recipe.steps) > 1 for recipe in listed}
    return [recipe for recipe in asked if recipe.text in texts or (len(recipe.steps) > 1) in kinds]


def parametrize(metafunc: pytest.Metafunc, settings: Settings) -> list[str]:
    """Parametrise one test; returns what was wrong, as sentences, for one usage error at the end of collection."""
    definition = metafunc.definition
    try:
        keywords = marker.read(definition.iter_markers("llm"))
        settings.thresholds(**keywords)  # read here for its errors
        asked = evaluations_for(definition, settings, keywords)
        found = cases(settings, registry_for(definition), keywords, asked)
        errors = []
    except SlimError as error:
        found, errors = [], [f"{definition.nodeid}: {error}"]
    # An empty list would be reported as a skip; the test is deselected instead.
    values: list[Case | None] = [*found] or [None]
    metafunc.parametrize(
        FIXTURE, values, ids=[case.id for case in found] or ["none"], indirect=True, scope="session"
    )
    return errors


def case_of(item: pytest.Item) -> Case | None:
    """The case of a collected test, `None` for one that is not ours or takes no recipe that was asked for."""
    callspec = getattr(item, "callspec", None)
    case = callspec.params.get(FIXTURE) if callspec else None
    return case if isinstance(case, Case) else None


def arrange(
    items: Iterable[pytest.Item], first: Container[str] = ()
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Tests to run and to deselect; ours sorted by model, first step and recipe: each is loaded and built once.

    pytest orders chained session fixtures badly: three models by three methods loaded a model six times.
    The sort is stable and keeps tests that are not ours where they are, before ours.

    Args:
        items: that were collected.
        first: node ids of those that go before all others (`--ff`).
    """
    items = list(items)
    dropped = [item for item in items if is_ours(item) and case_of(item) is None]
    others = [item for item in items if not is_ours(item)]
    ours = [(case, item) for item in items if (case := case_of(item)) is not None]
    models = list(dict.fromkeys(case.model for case, _ in ours))
    recipes = list(dict.fromkeys(case.recipe for case, _ in ours))
    beginnings = list(dict.fromkeys(_beginning(recipe) for recipe in recipes))
    ours.sort(
        key=lambda pair: (
            pair[1].nodeid not in first,
            models.index(pair[0].model),
            beginnings.index(_beginning(pair[0].recipe)),
            recipes.index(pair[0].recipe),
            pair[1].location[:2],
        )
    )
    ahead = [item for _, item in ours if item.nodeid in first]
    return [*ahead, *others, *(item for _, item in ours[len(ahead) :])], dropped


def _beginning(recipe: Recipe | None) -> str:
    """The first step, which recipes can share."""
    return recipe.steps[0].text if recipe else ""


def key_names(item: pytest.Item) -> tuple[str, str]:
    """Suite and test as they stand in a baseline: module name, and test name (after its class) without our parameters.

    Never the node id, which `--dist loadgroup` changes.
    """
    module, group = getattr(item, "module", None), getattr(item, "cls", None)
    suite = (module.__name__ if module else item.path.stem).removeprefix("pytest_llmslim.")
    case = case_of(item)
    name = item.name.replace(case.id, "", 1) if case else item.name
    name = name.replace("[-", "[").replace("-]", "]").replace("[]", "")
    return suite, f"{group.__qualname__}.{name}" if group else name


def key_of(item: pytest.Item) -> Key | None:
    """The key of a test's measurement, with an empty recipe where it brings its own candidates.

    `None` for a test that is not ours or takes no recipe that was asked for.
    """
    case = case_of(item)
    return Key(*key_names(item), case.label, case.recipe.text if case.recipe else "") if case else None


def subject_of(item: pytest.Item) -> str:
    """How one of our tests is called in a sentence."""
    key = key_of(item)
    return f"{key.recipe or key.test} on {key.model}" if key else item.name


def noted(collected: Iterable[pytest.Item], running: Iterable[pytest.Item]) -> dict[str, list[list[str]]]:
    """Keys of tests before and after deselection, as plain lists that xdist can carry."""
    return {
        name: [[key.suite, key.test, key.model, key.recipe] for item in items if (key := key_of(item))]
        for name, items in (("collected", collected), ("running", running))
    }


def expected(items: Iterable[pytest.Item], settings: Settings) -> list[tuple[Key, Thresholds]]:
    """Key (see `key_of`) and thresholds of each of our tests that will run.

    Raises:
        SettingError: a threshold of a marker is unusable.
    """
    cases = ((key_of(item), case_of(item)) for item in items)
    return [(key, thresholds_of(case, settings)) for key, case in cases if key and case]


def thresholds_of(case: Case, settings: Settings) -> Thresholds:
    """What a test will not ship; a part of its recipe is never shipped by itself.

    Raises:
        SettingError: a threshold of a marker is unusable.
    """
    from pytest_llmslim.gate import Thresholds

    return Thresholds() if case.part else settings.thresholds(**case.keywords)


# Reports -----------------------------------------------------------------------------------------------------


def attach(item: pytest.Item, report: pytest.TestReport) -> None:
    """Put on a report of one of our tests what the controller has to know, as plain builtins.

    Records go on the report of the call, and their figures where JUnit shows them: on the item, whose teardown
    it reads.
    """
    from pytest_llmslim import deadline
    from pytest_llmslim.encoding import to_builtins
    from pytest_llmslim.reports import junit

    case, key = case_of(item), key_of(item)
    report.llmslim_label = case.id if case else item.name  # type: ignore[attr-defined]
    report.llmslim_key = [key.suite, key.test, key.model, key.recipe] if key else []  # type: ignore[attr-defined]
    config = item.config
    reason = deadline.why_not() if settings_of(config).timeout else ""
    earlier = earlier_of(config)
    report.llmslim_remarks = [  # type: ignore[attr-defined]
        *([f"--llm-timeout is not enforced: {reason}."] if reason else []),
        *(() if isinstance(earlier, str) else earlier.remarks),
    ]
    if TOLD not in config.stash:  # the controller of xdist collects nothing itself
        report.llmslim_plan = config.stash.get(COLLECTED, {})  # type: ignore[attr-defined]
        report.llmslim_files = config.stash.get(FILES, {})  # type: ignore[attr-defined]
        config.stash[TOLD] = True
    records = item.stash.get(RECORDS, None)
    if report.when != "call" or not records:
        return
    report.llmslim = [to_builtins(record) for record in records]  # type: ignore[attr-defined]
    report.llmslim_taken = [record.key.recipe for record in item.stash.get(TAKEN, ())]  # type: ignore[attr-defined]
    for record in records:
        item.user_properties += junit.properties(record, alone=len(records) == 1)


def first_line(report: pytest.TestReport) -> str:
    """Why a test did not pass, in a line; empty where it does not say."""
    longrepr = report.longrepr
    if isinstance(longrepr, tuple):  # of a skip: path, line, reason
        return str(longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(longrepr, "reprcrash", None)
    text = str(crash.message if crash else longrepr)
    return text.partition("\n")[0].removeprefix("Failed: ")

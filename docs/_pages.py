"""A page for every method and every evaluation: from the catalogues, docstrings, tables of the docs, and numbers."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _numbers

from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.eval_catalogue import BUILTIN_EVALUATIONS
from pytest_llmslim.recipe import steps_of
from pytest_llmslim.registry import DISTIL, PRUNE, QUANTIZE, RECOVER, SPARSIFY

if TYPE_CHECKING:
    from pytest_llmslim.records import Evaluation, Record
    from pytest_llmslim.registry import Spec

DOCS: Final = Path(__file__).parent
STAGES: Final = {
    DISTIL: "training",
    PRUNE: "cutting shapes",
    SPARSIFY: "zeroing weights",
    QUANTIZE: "quantizing",
    RECOVER: "recovery, after what it makes up for",
    None: "anywhere",
}
FAMILIES: Final = "GPT-2, OPT, Llama, Mistral, Qwen2, Qwen3, Gemma 3"


def method_names() -> list[str]:
    """The pages of methods, as a table of contents names them."""
    return [f"method/{spec.name}" for spec in BUILTIN_METHODS]


def evaluation_names() -> list[str]:
    """Likewise of evaluations."""
    return [f"evaluation/{spec.name}" for spec in BUILTIN_EVALUATIONS]


def methods() -> dict[str, str]:
    """Text of every page of a method by its file."""
    return {f"method/{spec.name}.md": _method(spec) for spec in BUILTIN_METHODS}


def evaluations() -> dict[str, str]:
    """Likewise of evaluations."""
    return {f"evaluation/{spec.name}.md": _evaluation(spec) for spec in BUILTIN_EVALUATIONS}


# Methods ------------------------------------------------------------------------------------------------------


def _method(spec: Spec) -> str:
    does, speed, saved, by = _row_of("methods", spec.name) or (
        spec.summary,
        "as the original",
        "as the original",
        "own",
    )
    records = _records_of(spec.name)
    facts = [("stage", STAGES[spec.stage]), ("time and energy", speed), ("bytes", saved), ("made by", by)]
    facts.append(("model families", f"{FAMILIES}; a model it cannot work on is refused in a sentence"))
    if spec.extra:
        facts.append(("needs", f"`pip install 'pytest-llmslim[{spec.extra}]'`"))
    recipe = next((record.key.recipe for record in records), spec.name)
    parts = [
        f"# {spec.name}\n\n{_sentence(does)}\n",
        f"`{signature(spec)}`\n",
        _numbers.table(("", ""), facts),
        _parameters(spec),
        f"## Numbers on the embedded models\n\n{_method_numbers(records)}",
        f"## How to call it\n\n```console\n$ pytest suites/ --llm-recipe '{recipe}'\n```\n",
        f'```python\nimport pytest\n\n\n@pytest.mark.llm(recipe="{recipe}", max_perplexity_increase="3%")\n'
        "def test_it_ships(llm):\n    llm.measure()\n```\n",
        f"## How it works\n\n{_prose(spec)}\n",
        _waived(spec),
    ]
    return "\n".join(part for part in parts if part)


def _method_numbers(records: list[Record]) -> str:
    if not records:
        return "None are stored: `pytest suites/` with this recipe measures them.\n"
    return _numbers.of_recipes(records)


def _records_of(name: str) -> list[Record]:
    """Stored records of recipes with that step, those with nothing else first."""
    found: dict[tuple[str, str], Record] = {}
    for record in _numbers.stored():
        steps = [step.name for step in steps_of(record.key.recipe)]
        if record.key.model in _numbers.MODELS and name in steps:
            found.setdefault((record.key.recipe, record.key.model), record)
    return sorted(found.values(), key=lambda record: (record.key.recipe.count("+"), record.key.recipe))


def _waived(spec: Spec) -> str:
    if not spec.waives:
        return ""
    rows = "\n".join(f"- `{name}`: {reason}" for name, reason in spec.waives)
    return f"## Invariants that it does not keep\n\nOf those in [extending](../extending.md):\n\n{rows}\n"


# Evaluations --------------------------------------------------------------------------------------------------


def _evaluation(spec: Spec) -> str:
    what, metric, source = _row_of("evaluations", spec.name) or (spec.summary, "", "")
    facts = [("metric", metric), ("source", source)]
    example = {"classification": "classification(task=sst2)", "slice": "slice(kind=long)"}.get(
        spec.name, spec.name
    )
    parts = [
        f"# {spec.name}\n\n{_sentence(what)}\n",
        f"`{signature(spec)}`\n",
        _numbers.table(("", ""), [fact for fact in facts if fact[1]]),
        _parameters(spec),
        f"## Numbers\n\n{_evaluation_numbers(spec.name)}",
        f"## How to ask it\n\n```console\n$ pytest suites/ --llm-recipe int4 --llm-eval '{example}'\n```\n",
        f"## How it works\n\n{_prose(spec)}\n\nMore in [evaluations](../evaluations.md).\n",
    ]
    return "\n".join(part for part in parts if part)


def _evaluation_numbers(name: str) -> str:
    found: list[tuple[Record, Evaluation]] = [
        (record, each)
        for record in _numbers.stored()
        for each in record.evaluations
        if each.name.partition("(")[0] == name
    ]
    if not found:
        return (
            "None are stored. The embedded models read a made-up language, so it wants a model that reads English, "
            "and its task from the hub or from `--llm-data`.\n"
        )
    reader = {record.key.model for record, _ in found} - set(_numbers.MODELS)
    note = (
        "The embedded models read a made-up language and cannot be asked this. These are of stories260K, a Llama of "
        "260,000 parameters that was trained on children's stories, on a sample of the task: they show how the numbers "
        "look, on a model that mostly guesses.\n\n"
    )
    return (note if reader and not name == "slice" else "") + _numbers.of_evaluation(found)


# Both ---------------------------------------------------------------------------------------------------------


def signature(spec: Spec) -> str:
    """As a recipe is written: parameters with their defaults, bare where there is none."""
    fields = {field.name: field.default for field in dataclasses.fields(_class(spec))}
    absent = (None, "", dataclasses.MISSING)
    shown = [
        name if fields[name] in absent else f"{name}={str(fields[name]).replace('True', 'true')}"
        for name in spec.parameters
    ]
    return f"{spec.name}({', '.join(shown)})" if shown else spec.name


def _class(spec: Spec) -> Any:  # noqa: ANN401  # a dataclass, whichever the catalogue names
    module, _, attribute = spec.target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _parameters(spec: Spec) -> str:
    if not spec.parameters:
        return ""
    told = _meanings(_class(spec))
    fields = {field.name: field.default for field in dataclasses.fields(_class(spec))}
    rows = [(f"`{name}`", _default(fields[name]), told.get(name, "")) for name in spec.parameters]
    return "## Parameters\n\n" + _numbers.table(("parameter", "default", "meaning"), rows)


def _default(value: object) -> str:
    return "none" if value in (None, "", dataclasses.MISSING) else f"`{str(value).replace('True', 'true')}`"


def _meanings(cls: type) -> dict[str, str]:
    """What each parameter means; what a class does not say of its own stands at the class that it is derived from."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        found |= _arguments(inspect.cleandoc(each.__doc__ or ""))
    return found


def _arguments(docstring: str) -> dict[str, str]:
    """The section `Args` of a docstring: the meaning of each name in one line."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    entries = re.split(r"^    (?=\w+: )", section.group(1) if section else "", flags=re.MULTILINE)
    pairs = (entry.partition(": ") for entry in entries if entry.strip())
    return {name.strip(): " ".join(text.split()) for name, _, text in pairs}


def _prose(spec: Spec) -> str:
    """What the class says of itself, and what its file says, with links to papers."""
    own = re.split(r"^(?:Args|Raises|Returns):$", inspect.getdoc(_class(spec)) or "", flags=re.MULTILINE)[
        0
    ].strip()
    file = inspect.getdoc(importlib.import_module(spec.target.partition(":")[0])) or ""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", f"{own}\n\n{file}")


def _row_of(page: str, name: str) -> tuple[str, ...] | None:
    """The cells of a name's row in a table of a page, without the first; `likewise` is what the row above it has."""
    above: list[str] = []
    for line in (DOCS / f"{page}.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not (line.startswith("| `") and len(cells) >= 4):
            continue
        said = [above[i] if cell == "likewise" else cell for i, cell in enumerate(cells)]
        if re.search(rf"`{re.escape(name)}[`(]", cells[0]):
            return tuple("" if cell == "see below" else cell for cell in said[1:])
        above = said
    return None


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if not text.endswith(".") else text

"""The recipe grammar and the order of steps."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.errors import RecipeError
from pytest_llmslim.recipe import Step, parse
from pytest_llmslim.registry import Registry, Spec

FREE = Spec("free", "a:B", "anything goes", ("a", "b", "c"))

TABLES = Path(__file__).with_name("paper_tables.json")
REGISTRY = Registry((*BUILTIN_METHODS, FREE))


def value(text: str) -> object:
    """What the grammar makes of one written value."""
    return dict(parse(f"free(a={text})", REGISTRY).steps[0].parameters)["a"]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("int4", "int4"),
        ("int8()", "int8"),
        (" kd +\tint4\n", "kd+int4"),
        ("ah(threshold=0.9)+int4", "ah(threshold=0.9)+int4"),
        ("magnitude( sparsity = .5 )", "magnitude(sparsity=0.5)"),
        ("magnitude(pattern=2:4)", "magnitude(pattern=2:4)"),
        ("magnitude(pattern='2:4')", "magnitude(pattern=2:4)"),
        ("int8(threshold=6.0)", "int8(threshold=6)"),
        ("int8(threshold=6)", "int8(threshold=6)"),
        ("free(b=1, a=2)", "free(a=2,b=1)"),
        ("int4(double_quant=True)", "int4(double_quant=true)"),
        ("kd(student=meta-llama/Llama-3:x)+ah90", "kd(student=meta-llama/Llama-3:x)+ah90"),
        ('kd(student="a b, (c")', 'kd(student="a b, (c")'),
        ("kd(student=hub(a=1,b=(2)))", 'kd(student="hub(a=1,b=(2))")'),
        ("ah90+ah80+magnitude+int4", "ah90+ah80+magnitude+int4"),
        ("free+int4+free", "free+int4+free"),
        ("identity", "identity"),
    ],
)
def test_canonical_text(text, canonical):
    """One recipe has one spelling; it is kept when read again, and defaults are not written out."""
    recipe = parse(text, REGISTRY)

    assert canonical == recipe.text
    assert recipe == parse(recipe.text, REGISTRY)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("-2", -2),
        ("6.0", 6),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("1e300", 1e300),
        ("true", True),
        ("False", False),
        ("nan", "nan"),
        ("1e999", "1e999"),
        ("2:4", "2:4"),
        ("'1'", "1"),
        ('"true"', "true"),
        (r'"a\"b\\"', 'a"b\\'),
        ("''", ""),
    ],
)
def test_values(text, expected):
    """Numbers, truth values, words and quoted strings keep their type."""
    found = value(text)

    assert (type(expected), expected) == (type(found), found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected the name of a method at column 1, got the end; write it like ah\(threshold=0.9\)"),
        ("int4+", r"expected the name of a method at column 6, got the end"),
        ("int4++int8", r"expected the name of a method at column 6, got '\+int8'"),
        ("int4 int8", r"expected '\+' or the end at column 6, got 'int8'"),
        ("int8(", r"expected parameter=value at column 6, got the end"),
        ("ah(0.9)", r"expected parameter=value at column 4, got '0.9\)'"),
        ("ah(threshold)", r"expected parameter=value at column 4, got 'threshold\)'"),
        ("ah(threshold=)", r"expected a number, true, false, a word, or a string in quotes at column 14"),
        ("ah(threshold=a b)", r"expected a number, .* at column 14, got 'a b\)'"),
        ("ah(threshold=((1)", r"opens a '\(' that is never closed at column 14"),
        ("ah(threshold='1)", r"this ' is never closed at column 14"),
        ("ah(threshold='1\\", r"this ' is never closed at column 14"),
        ("ah(threshold='1' 2)", r"expected ',' or '\)' at column 18, got '2\)'"),
        ("ah(threshold=1,threshold=2)", r"threshold is given twice at column 16"),
        ("int4" + " " * 2000, r"a recipe has at most 2000 characters, got 2004"),
        ("int5", r"there is no method 'int5' \(did you mean"),
        ("ah(size=1)", r"^ah has no parameter 'size'; it takes threshold$"),
        ("identity(a=1)", r"^identity has no parameter 'a'; it takes none$"),
        ("ah90(threshold=0.5)", r"^ah90 fixes threshold=0.9 and takes no other value$"),
    ],
)
def test_mistakes_are_pointed_at(text, message):
    """What does not parse is told with column, expectation and what was found there."""
    with pytest.raises(RecipeError, match=message):
        parse(text, REGISTRY)


@pytest.mark.parametrize(
    ("text", "working"),
    [
        ("int4+ah90", "ah90+int4"),
        ("kd+int8+ah80", "kd+ah80+int8"),
        ("int4+magnitude(pattern=2:4)+kd", "kd+magnitude(pattern=2:4)+int4"),
        ("int4+free+ah90", "ah90+free+int4"),
        ("wanda+depth", "depth+wanda"),
        ("gptq+kd+lora", "kd+gptq+lora"),
        ("lora+int4", "int4+lora"),
        ("eora+wanda+rtn", "wanda+rtn+eora"),
        ("free+lora+width", "free+width+lora"),
    ],
)
def test_orders_that_cannot_work_are_refused_with_the_one_that_can(text, working):
    """The error of a wrong order ends with a recipe that parses."""
    with pytest.raises(RecipeError, match=r"steps run from left to right, training before pruning") as caught:
        parse(text, REGISTRY)

    assert str(caught.value).endswith(f"got {text}; write {working}")
    assert working == parse(working, REGISTRY).text


@pytest.mark.parametrize(
    "text",
    [
        "width+kd",
        "kd+width",
        "wanda+kd+gptq",
        "depth+kd+wanda+rtn+eora",
        "width+lora+gptq",
        "nf4+lora",
        "gptq+eora+lora",
        "hidden+depth+width",
        "magnitude+wanda",
    ],
)
def test_orders_that_work_are_taken(text):
    """Training heals what was cut and may follow it; what makes up for a loss may follow any step."""
    assert text == parse(text, REGISTRY).text


@pytest.mark.parametrize("text", ["lora", "eora(rank=4)", "lora+eora"])
def test_recovery_needs_something_to_recover(text):
    """Alone it has nothing to make up for."""
    first = text.partition("+")[0]
    with pytest.raises(RecipeError, match=r"makes up for what an earlier step lost, got") as caught:
        parse(text, REGISTRY)

    assert str(caught.value).endswith(f"write a step before it, e.g. int4+{first}")
    parse(f"int4+{first}", REGISTRY)


@pytest.mark.parametrize("text", json.loads(TABLES.read_text())["combinations"])
def test_the_combinations_of_the_paper_are_recipes(text):
    """Table 1 names what is combined; its quantize-then-prune is refused with the order that works."""
    try:
        assert text == parse(text, REGISTRY).text
    except RecipeError as error:
        working = str(error).rpartition("write ")[2]
        assert sorted(text.split("+")) == sorted(working.split("+"))
        assert working == parse(working, REGISTRY).text


def test_weights_are_quantized_once():
    """Two quantizations are refused by name."""
    with pytest.raises(
        RecipeError, match=r"^weights are quantized once, got int8\+ah90\+fp4; keep one of int8, fp4$"
    ):
        parse("int8+ah90+fp4", REGISTRY)


@pytest.mark.parametrize(("text", "remedy"), [("identity+int4", "int4"), ("identity+identity", "identity")])
def test_identity_stands_alone(text, remedy):
    """The control is not mixed with methods."""
    with pytest.raises(
        RecipeError, match=rf"^identity changes nothing and stands alone, .*; write {remedy}$"
    ):
        parse(text, REGISTRY)


@pytest.mark.parametrize(("text", "control"), [("identity", True), ("int4", False), ("ah90+int4", False)])
def test_only_identity_is_a_control(text, control):
    """A run under the identity recipe is known as an A/A run."""
    assert control == parse(text, REGISTRY).control


# drawing text is slow the first time, on a busy machine
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

scalars = st.one_of(
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.text("0123456789.eE+-:/_ '\"\\()", max_size=8),
)
steps = st.builds(
    lambda given: Step("free", tuple(sorted(given.items()))),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), scalars),
)


@patient
@given(st.lists(steps, min_size=1, max_size=4))
def test_spelled_recipes_read_back(steps):
    """Any values survive being written and read, and the canonical text is a fixed point."""
    text = "+".join(step.text for step in steps)
    recipe = parse(text, REGISTRY)

    assert list(recipe.steps) == steps
    assert recipe.text == parse(recipe.text, REGISTRY).text


@patient
@given(st.one_of(st.text(), st.text("int4ah90free(),=+'\"\\ .:\t" + string.digits, max_size=40)))
@example("free(a=" + "(" * 1900)
@example("free(a=" + "9" * 1900 + ")")
@example("free(a='\\")
@example("\0")
def test_garbage_is_a_recipe_error(text):
    """No text makes the parser fail in any other way than with our error; what parses is a fixed point."""
    try:
        recipe = parse(text, REGISTRY)
    except RecipeError:
        return
    assert recipe.text == parse(recipe.text, REGISTRY).text

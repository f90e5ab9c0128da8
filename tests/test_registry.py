"""Names to lazy targets."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from pytest_llmslim import hookspecs
from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.errors import RecipeError
from pytest_llmslim.methods import Method
from pytest_llmslim.recipe import Step, instantiate
from pytest_llmslim.registry import Registry, Spec


@pytest.fixture
def registry() -> Registry:
    return Registry(BUILTIN_METHODS)


def test_names_are_sorted(registry):
    """Every process lists the methods in the same order."""
    assert tuple(sorted(spec.name for spec in BUILTIN_METHODS)) == registry.names()


NEEDED = {"layers": (("map", "0"),), "shear": (("layers", 1),), "sheared": (("layers", 1),)}
"""Parameters without which a method cannot be made."""


@pytest.mark.parametrize("spec", BUILTIN_METHODS, ids=lambda spec: spec.name)
def test_built_in_specs_lead_to_methods(spec, registry):
    """Every built-in name gives a method whose fields are those that its spec declares."""
    method = instantiate(Step(spec.name, NEEDED.get(spec.name, ())), registry)

    assert isinstance(method, Method)
    fields = {field.name for field in dataclasses.fields(method)}
    assert set(spec.parameters) | set(dict(spec.preset)) == fields
    assert spec.summary


@pytest.mark.parametrize(("name", "threshold"), [("ah90", 0.9), ("ah80", 0.8)])
def test_presets_fix_parameters(name, threshold, registry):
    """`ah90` and `ah80` are `ah` with the thresholds of the paper."""
    assert instantiate(Step("ah", (("threshold", threshold),)), registry) == instantiate(Step(name), registry)


def test_int4_is_nf4(registry):
    """`int4` and `nf4` name the same method."""
    assert instantiate(Step("nf4"), registry) == instantiate(Step("int4"), registry)


def test_unknown_names_are_listed(registry):
    """An unknown name is answered with the nearest and with all names."""
    with pytest.raises(RecipeError, match=r"no method 'INT4' \(did you mean int4 .*known are ah, .*, width$"):
        registry.get("INT4")
    with pytest.raises(RecipeError, match=r"^there is no method 'zzz'; known are none$"):
        Registry(()).get("zzz")


def test_clashes_name_both_origins():
    """Two specs of one name are refused, and both origins are told."""
    ours, theirs = Spec("x", "a.b:C", ""), Spec("x", "d:E", "", origin="their_package")
    with pytest.raises(
        RecipeError, match=r"'x' is registered twice, by pytest_llmslim \(a.b:C\) and by their_package"
    ):
        Registry((ours, theirs))


def test_the_same_spec_may_come_twice():
    """A spec that two conftest.py files both register is one method."""
    assert ("x",) == Registry((Spec("x", "a:B", ""), Spec("x", "a:B", ""))).names()


@pytest.mark.parametrize("name", ["", "4bit", "a b", "a+b", "a(b)", "ä"])
def test_names_have_to_fit_the_grammar(name):
    """A name that no recipe could spell is refused where it is registered."""
    with pytest.raises(RecipeError, match=r"the method name .* from here is a letter followed by"):
        Registry([Spec(name, "a:B", "", origin="here")])


@pytest.mark.parametrize("target", ["", "a.b", "a:b:c", "a b:c", ":c"])
def test_targets_have_to_be_module_and_attribute(target):
    """A target without module or attribute is refused where it is registered."""
    with pytest.raises(RecipeError, match=r"has a target like 'package.module:attribute', got"):
        Registry([Spec("x", target, "")])


class Refuses:
    """Takes no parameters, and is no method."""


@pytest.mark.parametrize(
    ("target", "parameters", "message"),
    [
        (
            "no_such_package.inner:X",
            (),
            r"'x' needs the Python package no_such_package, .* pip install no_such_package$",
        ),
        (
            "test_registry:Missing",
            (),
            r"'x' from here has the target test_registry:Missing, but module 'test_registry'",
        ),
        (
            "test_registry:Refuses",
            (),
            r"'x' from here points to test_registry:Refuses, which has no compress",
        ),
        (
            "test_registry:Refuses",
            (("a", 1),),
            r"'x' from here does not take the parameters its spec declares",
        ),
    ],
)
def test_broken_targets_are_told_in_a_sentence(target, parameters, message):
    """What goes wrong on the way from a requested name to a method is said with its cause."""
    registry = Registry([Spec("x", target, "", ("a",), origin="here")])
    with pytest.raises(RecipeError, match=message):
        instantiate(Step("x", parameters), registry)


def test_failing_imports_keep_their_reason(tmp_path, monkeypatch):
    """A module that is there but cannot be imported is told with the error of its import."""
    (tmp_path / "broken_method.py").write_text("from pytest_llmslim.errors import NoSuchName\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        RecipeError, match=r"'x' from here cannot be imported: cannot import name 'NoSuchName'"
    ):
        instantiate(Step("x"), Registry([Spec("x", "broken_method:X", "", origin="here")]))


def test_methods_are_contributed_by_hook(registry):
    """Specs from an implementation of the hook join the built-in ones."""

    class Plugin:
        def pytest_llmslim_methods(self, config):
            return [Spec("halve", "test_registry:Refuses", "halves", ("factor",), origin="my_package")]

    manager = pytest.PytestPluginManager()
    manager.add_hookspecs(hookspecs)
    manager.register(Plugin())
    found = [spec for specs in manager.hook.pytest_llmslim_methods(config=None) for spec in specs]

    assert {*registry.names(), "halve"} == set(Registry((*BUILTIN_METHODS, *found)).names())


def test_names_cost_no_torch():
    """Registry and recipes can be read at collection time: neither torch nor pytest is imported."""
    code = (
        "import sys; from pytest_llmslim import catalogue, methods, recipe, registry;"
        "recipe.parse('ah90+int4', registry.Registry(catalogue.BUILTIN_METHODS));"
        "sys.exit(bool({'torch', 'pytest', 'bitsandbytes'} & set(sys.modules)))"
    )
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode

"""What the marker says, which recipes a test gets, and the order of tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llmslim import collection, marker
from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.errors import SettingError
from pytest_llmslim.recipe import parse
from pytest_llmslim.registry import Registry

REGISTRY = Registry(BUILTIN_METHODS)


def marks(*keywords):
    return [pytest.mark.llm(**k).mark for k in keywords]


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ([], {}),
        ([{"recipe": "int4"}], {"recipes": ("int4",), "fixed_recipes": True}),
        ([{"model": Path("a/b")}], {"models": ("a/b",), "fixed_models": True}),
        ([{"recipes": ["int4", "int8"], "max_opt": 0.9}], {"recipes": ("int4", "int8"), "max_opt": 0.9}),
        (
            [{"max_opt": 0.5}, {"max_opt": 0.9, "recipe": "int4"}],
            {"max_opt": 0.5, "recipes": ("int4",), "fixed_recipes": True},
        ),
        ([{"recipe": None}], {}),
    ],
)
def test_the_nearest_marker_wins_for_each_keyword(keywords, expected):
    """Markers of test, class and module add up."""
    assert marker.read(marks(*keywords)) == expected


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (
            pytest.mark.llm("int4"),
            r"takes keywords only, got 'int4'; it knows eval, evals, max_accuracy_drop, .*max_opt",
        ),
        (pytest.mark.llm(max_ppl=1), r"has no keyword 'max_ppl'; it knows eval, .*recipes\."),
        (pytest.mark.llm(recipe="a", recipes=["b"]), r"takes recipe or recipes, got both\."),
        (
            pytest.mark.llm(recipes="int4"),
            r"llm\(recipes=\.\.\.\) is a list, got 'int4'; write recipe= for one\.",
        ),
    ],
)
def test_a_wrong_marker_is_refused(mark, message):
    """The sentence lists what is known."""
    with pytest.raises(SettingError, match=message):
        marker.read([mark.mark])


def test_the_registered_help_names_every_keyword():
    """`pytest --markers` cannot drift from what is read."""
    from pytest_llmslim.plugin import MARKER

    assert all(keyword in MARKER for keyword in marker.KEYWORDS)


@pytest.mark.parametrize(
    ("listed", "asked", "expected"),
    [
        (["int8", "int4"], [], ["int8", "int4"]),
        (["int8", "int4"], ["int4"], ["int4"]),
        (["int8", "int4"], ["fp4"], ["fp4"]),
        (["int8", "int4"], ["int4", "fp4"], ["int4", "fp4"]),
        (["int8", "int4"], ["ah90+int4"], []),
        (["ah90+int8"], ["int4"], []),
        (["ah90+int8"], ["ah80+fp4"], ["ah80+fp4"]),
        (["int8", "ah90+int8"], ["fp4", "ah80+fp4"], ["fp4", "ah80+fp4"]),
        (["magnitude(sparsity=0.5)"], ["magnitude( sparsity = .5 )"], ["magnitude(sparsity=0.5)"]),
    ],
)
def test_asked_recipes_narrow_or_replace_a_list(listed, asked, expected):
    """A listed recipe narrows; another goes to the tests of its kind, single or combined."""
    found = collection.narrow([parse(t, REGISTRY) for t in listed], [parse(t, REGISTRY) for t in asked])
    assert [recipe.text for recipe in found] == expected


def test_a_test_about_one_recipe_is_never_given_another():
    """`recipe=` is narrowed only; `recipes=` may be replaced."""
    listed, asked = [parse("int4", REGISTRY)], [parse("fp4", REGISTRY)]
    assert collection.narrow(listed, asked, fixed=True) == []
    assert collection.narrow(listed, listed + asked, fixed=True) == listed


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("embedded:gpt2", "embedded:gpt2"),
        ("openai-community/gpt2", "openai-community/gpt2"),
        ("/models/My Llama", "My Llama"),
        ("/models/gemma-3-270m.q4.gguf", "gemma-3-270m.q4"),
        ("./here/model", "model"),
    ],
)
def test_a_model_is_called_by_its_id_or_the_last_part_of_its_path(name, label):
    """A baseline made on one machine is found on another."""
    assert collection.model_label(name) == label


# Through pytest -------------------------------------------------------------------------------------------

SUITE = """
    import pytest

    @pytest.mark.llm(recipes=["int8", "int4"])
    def test_first(llm): pass

    @pytest.mark.llm(recipes=["int4", "ah90"])
    def test_second(llm): pass

    def test_other(): pass

    @pytest.mark.parametrize("n", [1, 2])
    @pytest.mark.llm(recipe="int8")
    def test_third(llm, n): pass
"""


def collected(pytester, *args):
    result = pytester.runpytest("--collect-only", "-q", "-p", "no:benchmark", *args)
    return [line.partition("::")[2] for line in result.outlines if "::" in line]


def test_tests_are_sorted_by_model_and_recipe(pytester):
    """Each model is loaded once and each candidate built once; other tests come first, in their order."""
    pytester.makepyfile(test_suite=SUITE)
    assert collected(pytester, "--llm-model", "embedded:gpt2", "--llm-model", "embedded:llama") == [
        "test_other",
        "test_first[embedded:gpt2-int8]",
        "test_third[embedded:gpt2-int8-1]",
        "test_third[embedded:gpt2-int8-2]",
        "test_first[embedded:gpt2-int4]",
        "test_second[embedded:gpt2-int4]",
        "test_second[embedded:gpt2-ah90]",
        "test_first[embedded:llama-int8]",
        "test_third[embedded:llama-int8-1]",
        "test_third[embedded:llama-int8-2]",
        "test_first[embedded:llama-int4]",
        "test_second[embedded:llama-int4]",
        "test_second[embedded:llama-ah90]",
    ]


def test_recipes_that_begin_alike_stand_together(pytester):
    """So that a long first step is taken once, whichever tests share it."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.llm(model="embedded:gpt2", recipes=["kd+int8", "ah90+int8", "kd+int4"])
        def test_pairs(llm): ...

        @pytest.mark.llm(model="embedded:gpt2", recipes=["int8", "kd"])
        def test_alone(llm): ...
        """
    )
    found = collected(pytester)
    assert len(found) == 5
    assert {name.partition("gpt2-")[2] for name in found[:3]} == {"kd]", "kd+int8]", "kd+int4]"}


def test_a_recipe_that_no_test_takes_is_deselected(pytester):
    """Not skipped: nothing was asked of that test."""
    pytester.makepyfile(test_suite=SUITE)
    result = pytester.runpytest("--collect-only", "-q", "--llm-recipe", "ah90+int4")
    result.stdout.fnmatch_lines(["*test_other", "*1/* tests collected (* deselected)*"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--llm-recipe", "int5"], "*there is no method 'int5' (did you mean*"),
        (["--llm-recipe", "int4+ah90"], "*got int4+ah90; write ah90+int4*"),
        (["--llm-recipe", "int4("], "*recipe 'int4(': expected*"),
    ],
)
def test_a_recipe_that_cannot_run_is_a_usage_error(pytester, args, message):
    """Exit code 4 and one sentence, before anything runs."""
    pytester.makepyfile(test_suite=SUITE)
    result = pytester.runpytest(*args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_two_models_of_one_name_are_refused(pytester):
    """Their rows and baselines would be one."""
    pytester.makepyfile(test_suite=SUITE)
    result = pytester.runpytest("--llm-model", "/a/gpt2", "--llm-model", "/b/gpt2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*Two models are both called gpt2, and their results could not be told apart*"]
    )


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ("recipe='int5'", "*test_it: there is no method 'int5'*"),
        ("max_ppl=1", "*test_it: @pytest.mark.llm has no keyword 'max_ppl'*"),
        ("max_opt='low'", "*test_it: @pytest.mark.llm(max_opt=...) is a number above 0, got 'low'*"),
        (
            "max_perplexity_increase=0.03",
            "*test_it: @pytest.mark.llm(max_perplexity_increase=...) is a percentage*",
        ),
    ],
)
def test_a_marker_that_cannot_be_read_is_a_usage_error(pytester, keywords, message):
    """The test is named with what is wrong."""
    pytester.makepyfile(f"import pytest\n@pytest.mark.llm({keywords})\ndef test_it(llm): pass")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_methods_of_a_conftest_are_seen_below_it_only(pytester):
    """A directory's own method is known to its tests, and not to its neighbours."""
    pytester.makepyfile(
        **{
            "inside/conftest": """
            import pytest
            from pytest_llmslim.registry import Spec

            @pytest.hookimpl(optionalhook=True)
            def pytest_llmslim_methods(config):
                return [Spec("halve", "my.module:Halve", "halves", origin="inside/conftest.py")]
        """,
            "inside/test_in": "import pytest\n@pytest.mark.llm(recipe='halve')\ndef test_in(llm): pass",
        }
    )
    assert collected(pytester, "--llm-model", "embedded:gpt2") == ["test_in[embedded:gpt2-halve]"]
    pytester.makepyfile(test_out="import pytest\n@pytest.mark.llm(recipe='halve')\ndef test_out(llm): pass")
    pytester.runpytest().stderr.fnmatch_lines(["*test_out: there is no method 'halve'*"])


def test_names_of_a_baseline_do_not_hold_our_parameters(pytester):
    """Suite is the module, test the function with the user's own parameters only."""
    items = pytester.getitems("""
        import pytest

        @pytest.mark.parametrize("n", [1])
        @pytest.mark.llm(recipe="int8", model="embedded:gpt2")
        def test_both(llm, n): pass

        @pytest.mark.llm(recipe="int8", model="embedded:gpt2")
        def test_plain(llm): pass
    """)
    assert {collection.key_names(item)[1] for item in items} == {"test_both[1]", "test_plain"}


def test_thresholds_of_some_markers_alone():
    """As written, nearest first; other markers and keywords are passed over."""
    own = [
        pytest.mark.llm(max_opt=0.5, recipe="int8").mark,
        pytest.mark.skipif(True, reason="not ours").mark,
        pytest.mark.llm(max_opt=0.9, max_time_increase="5%", max_energy_increase=None).mark,
    ]
    assert marker.limits(own) == {"max_opt": 0.5, "max_time_increase": "5%"}
    assert marker.limits(own[1:2]) == {}


FORESEEN = """
    import pytest

    @pytest.mark.llm(recipes=["int8", "int4"], max_opt=0.9)
    def test_first(llm): pass

    class TestOwn:
        def test_second(self, llm): pass

    def test_other(): pass
"""


def test_what_will_run_is_known_before_it_does(pytester):
    """Key and thresholds of each of our tests that is left, with no recipe where a test brings its own candidate."""
    from pytest_llmslim.gate import Thresholds
    from pytest_llmslim.state import COLLECTED
    from pytest_llmslim.state import FORESEEN as EXPECTED

    path = pytester.makepyfile(test_suite=FORESEEN)
    config = pytester.parseconfigure(
        path, "--llm-model=embedded:gpt2", "--llm-max-opt=2", "-k", "not int4", "-p", "no:benchmark"
    )
    session = pytest.Session.from_config(config)
    config.hook.pytest_sessionstart(session=session)
    session.perform_collect()
    assert [(key.suite, key.test, key.model, key.recipe) for key, _ in config.stash[EXPECTED]] == [
        ("test_suite", "test_first", "embedded:gpt2", "int8"),
        ("test_suite", "TestOwn.test_second", "embedded:gpt2", ""),
    ]
    assert [limits for _, limits in config.stash[EXPECTED]] == [
        Thresholds(max_opt=0.9),
        Thresholds(max_opt=2),
    ]
    noted = config.stash[COLLECTED]
    assert [names[3] for names in noted["collected"]] == ["int8", "int4", ""]
    assert [names[3] for names in noted["running"]] == ["int8", ""]


def test_a_test_is_called_by_its_candidate(pytester):
    """In a sentence a test is its recipe on its model; without a recipe it has its own name."""
    items = pytester.getitems(FORESEEN)
    assert {collection.subject_of(item) for item in items} >= {
        "int8 on embedded:gpt2",
        "TestOwn.test_second on embedded:gpt2",
        "test_other",
    }

"""Which baselines nothing was compared with, from what was collected, ran and was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmslim.absent import Run, absent
from pytest_llmslim.records import Key

INT8 = Key("test_own", "test_ships", "gpt2", "int8")
OWN = replace(INT8, recipe="")


def told(stored, collected, running=None, **done):
    running = frozenset(collected if running is None else running)
    done = {name: frozenset(value) if isinstance(value, list) else value for name, value in done.items()}
    return absent(stored, Run(tuple(collected), running, **done), lambda key: f"{key.suite}.json")


def other(**fields):
    return replace(INT8, **fields)


def test_what_was_measured_is_not_absent():
    """Every entry met its record."""
    assert told([INT8], [INT8], measured=[INT8], passed=[INT8]) == ()


@pytest.mark.parametrize("gone", [other(test="test_old"), other(recipe="fp4")], ids=["test", "recipe"])
def test_an_entry_whose_test_or_recipe_is_gone_is_listed(gone):
    """With what may have happened, and where the line is."""
    assert told([INT8, gone], [INT8], measured=[INT8], passed=[INT8]) == (
        f"baseline without a test: {gone.test} in test_own ({gone.recipe} on gpt2): renamed or removed? Give it "
        "its name back, or write a new one with --llm-update and delete the old from test_own.json.",
    )


def test_entries_of_one_test_stand_in_one_sentence():
    """However many recipes it had."""
    gone = [other(test="test_old", recipe=recipe) for recipe in ("int4", "int8", "kd+int4")]
    (sentence,) = told(gone, [INT8], measured=[INT8], passed=[INT8])
    assert "test_old in test_own (int4, int8, kd+int4 on gpt2)" in sentence


@pytest.mark.parametrize(
    "elsewhere", [other(suite="test_other"), other(model="llama")], ids=["suite", "model"]
)
def test_entries_of_suites_and_models_that_took_no_part_are_let_be(elsewhere):
    """A run of one file, or of one model, says nothing about others."""
    assert (
        told([elsewhere, replace(elsewhere, test="test_old")], [INT8], measured=[INT8], passed=[INT8]) == ()
    )


@pytest.mark.parametrize(
    ("done", "reason"),
    [
        ({"reasons": {INT8: "no GPU here."}}, "no GPU here"),
        ({"passed": [INT8]}, "its test ended without measuring it"),
        ({}, "its test did not end"),
    ],
)
def test_a_test_that_measured_nothing_is_listed_with_the_reason(done, reason):
    """Skipped, failed before, never asked for a measurement, or lost with its worker."""
    assert told([INT8], [INT8], **done) == (
        f"int8 on gpt2 has a baseline for test_ships in test_own and was not measured: {reason}.",
    )


def test_deselected_tests_are_let_be():
    """Of a test with several recipes also those of which nobody can say what they belong to."""
    int4 = other(recipe="int4")
    assert told([INT8], [INT8], []) == ()
    assert told([INT8, int4, other(recipe="fp4")], [INT8, int4], [INT8], measured=[INT8], passed=[INT8]) == ()


def test_tests_picked_by_name_say_nothing_about_others():
    """With --llm-recipe or a node id others were not collected; those that ran are looked at all the same."""
    stored = [other(test="test_old"), other(recipe="fp4"), INT8]
    assert told(stored, [INT8], measured=[INT8], passed=[INT8], narrowed=True) == ()
    (sentence,) = told(stored, [INT8], reasons={INT8: "skipped"}, narrowed=True)
    assert sentence.endswith("was not measured: skipped.")


def test_a_test_that_brings_its_own_candidates_owns_all_its_entries():
    """Whatever they are called; one that it no longer measures was not measured."""
    mine, again = other(recipe="mine"), other(recipe="again")
    assert told([mine, again], [OWN], measured=[mine, again], passed=[OWN]) == ()
    (sentence,) = told([mine, again], [OWN], measured=[mine], passed=[OWN])
    assert sentence == (
        "again on gpt2 has a baseline for test_ships in test_own and was not measured: "
        "its test ended without measuring it."
    )


def test_a_second_candidate_of_a_test_with_a_recipe():
    """Its label is no recipe that was collected: measured it is fine, and missing after a failure unmeasured."""
    again = other(recipe="again")
    assert told([INT8, again], [INT8], measured=[INT8, again], passed=[INT8]) == ()
    assert told([again], [INT8], measured=[INT8], reasons={INT8: "it broke."}) == (
        "again on gpt2 has a baseline for test_ships in test_own and was not measured: int8: it broke.",
    )


keys = st.builds(
    Key, *[st.sampled_from(pair) for pair in (["s", "t"], ["a", "b"], ["m", "n"], ["", "x", "y"])]
)


@given(st.lists(keys), st.lists(keys), st.lists(keys), st.booleans(), st.data())
def test_no_entry_disappears_and_partial_runs_are_quiet(stored, collected, measured, narrowed, data):
    """In a whole run of passed tests each entry of its suites was measured or is in a sentence, and only those."""
    stored = list(dict.fromkeys(replace(key, recipe=key.recipe or "z") for key in stored))
    done = {"measured": measured, "passed": collected}
    whole = " ".join(told(stored, collected, **done))
    here = {(key.suite, key.model) for key in collected}
    for key in stored:
        if (key.suite, key.model) in here and key not in measured:
            assert f"{key.test} in {key.suite}" in whole
    assert bool(whole) == any((key.suite, key.model) in here and key not in measured for key in stored)
    running = data.draw(st.lists(st.sampled_from(collected)) if collected else st.just([]))
    partly = told(stored, collected, running, narrowed=narrowed, **done)
    assert len(partly) <= len(told(stored, collected, **done))
    assert told(stored, collected, [], narrowed=True, **done) == ()

"""The tables of evaluations, line by line."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sample_records import record

from pytest_llmslim.records import Estimate, Evaluation, Figure, Flips, Question, no_estimate
from pytest_llmslim.reports import details, evaluations

ARC = Evaluation(
    name="arc_challenge",
    metric="acc_norm",
    higher_is_better=True,
    chance=0.25,
    reference=0.4,
    candidate=0.375,
    ratio=Estimate(0.9375, 0.8, 1.1, 40, "measured", "questions"),
    n=40,
    protocol={"shots": "25", "rows": "40 of 1172", "sha256": "ab" * 32},
    flips=Flips(2, 1, 1.0),
    worst=(
        Question(
            "arc_challenge/7", "Which gas do plants take?", "carbon dioxide", "carbon dioxide", "iron", 1.0
        ),
    ),
    notes=("3 of 160 prompts lost their beginning",),
)
SPEED = Evaluation(
    "latency",
    "",
    False,
    None,
    None,
    None,
    no_estimate("it has no metric, only figures"),
    0,
    {},
    figures=(
        Figure("ttft batch 1", "s", 0.012, 0.006, Estimate(0.5, 0.45, 0.55, 8, "measured", "perf_counter")),
        Figure("kept", "%", 0.25, 0.5),
        Figure("speed", "tokens/s", 100.0, None),
    ),
)


def told(*found, **changes):
    """A record with these evaluations."""
    return record(evaluations=found, **changes)


def test_a_task_has_a_row_a_recipe_under_the_reference():
    """With both directions of flips and the exact test; its head says what was asked, and a note what to know."""
    other = replace(
        ARC, candidate=0.4, ratio=Estimate(1.0, 1.0, 1.0, 40, "measured", "questions"), flips=Flips(0, 0, 1.0)
    )
    rows = [told(ARC), told(other, key=replace(record().key, recipe="int8"))]

    assert evaluations.lines(rows) == [
        "  arc_challenge: acc_norm, higher is better, chance 0.250, n = 40 (shots 25, rows 40 of 1172)",
        "               acc_norm  ratio [95 %]          right -> wrong  wrong -> right  McNemar p",
        "    reference  0.400",
        "    int4       0.375     0.938 [0.800, 1.100]  2               1               1.0",
        "    int8       0.400     1.000 [1.000, 1.000]  0               0               1.0",
        "    3 of 160 prompts lost their beginning",
        "",
    ]


def test_figures_stand_beside_a_metric():
    """Of the reference in its own row; a unit goes with its number."""
    figures = (Figure("repeated", "%", 0.1, 0.25), Figure("loss", "nats", 2.0, 2.5))
    lines = evaluations.lines([told(replace(ARC, flips=None, figures=figures))])

    assert lines[1:4] == [
        "               acc_norm  ratio [95 %]          repeated  loss",
        "    reference  0.400                           10.0 %    2.00 nats",
        "    int4       0.375     0.938 [0.800, 1.100]  25.0 %    2.50 nats",
    ]


def test_without_a_metric_a_row_is_a_figure():
    """The reference in its unit, a candidate as ratio where it was paired."""
    assert evaluations.lines([told(SPEED)]) == [
        "  latency: candidate / reference [95 %]",
        "                  reference     int4",
        "    ttft batch 1  12.0 ms       0.500 [0.450, 0.550]",
        "    kept          25.0 %        50.0 %",
        "    speed         100 tokens/s  -",
        "",
    ]


def test_a_recipe_that_lacks_an_evaluation_has_no_row():
    """Tests of one run may ask for different ones."""
    lines = evaluations.lines([told(ARC), told(key=replace(record().key, recipe="int8"))])

    assert not any("int8" in line for line in lines)


def test_unlike_protocols_have_tables_of_their_own():
    """Tests of one run may limit themselves differently."""
    fewer = replace(ARC, n=20, protocol={**ARC.protocol, "rows": "20 of 1172"})
    lines = evaluations.lines([told(ARC), told(fewer, key=replace(record().key, recipe="int8"))])

    assert [line[-33:] for line in lines if "higher is better" in line] == [
        "n = 40 (shots 25, rows 40 of 1172)"[-33:],
        "n = 20 (shots 25, rows 20 of 1172)"[-33:],
    ]


def test_what_was_left_out_is_a_note_alone():
    """Without a table that would be empty."""
    left_out = replace(SPEED, figures=(), notes=("left out: the tokenizer knows 3 % of this text",))

    assert evaluations.lines([told(left_out)]) == [
        "  latency",
        "    left out: the tokenizer knows 3 % of this text",
        "",
    ]


def test_nothing_without_evaluations():
    """A run that asked for none looks as before."""
    assert evaluations.lines([record()]) == []


def test_the_worst_questions_stand_in_the_details():
    """With what is right and what both said, on one line each."""
    lines = details.details(told(ARC))

    at = lines.index("arc_challenge, what got worse, worst first:")
    assert lines[at + 1 : at + 3] == [
        "  arc_challenge/7: Which gas do plants take?",
        "    expected 'carbon dioxide', reference 'carbon dioxide', candidate 'iron'",
    ]


@pytest.mark.parametrize(("text", "shown"), [("a\n b", "a b"), ("x" * 161, "... " + "x" * 160)])
def test_long_texts_keep_their_end(text, shown):
    """The question stands at the end of a prompt."""
    question = replace(ARC.worst[0], text=text)

    assert evaluations.worst(replace(ARC, worst=(question,)))[1] == f"  arc_challenge/7: {shown}"

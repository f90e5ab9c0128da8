"""Who is asked, and how often: the reference once a run, each candidate once."""

from __future__ import annotations

import textwrap

import pytest

CONFTEST = """
    from dataclasses import dataclass

    import pytest

    from pytest_llmslim.errors import EvaluationError
    from pytest_llmslim.evals import Answer, Answers, Metric
    from pytest_llmslim.records import Figure
    from pytest_llmslim.registry import Spec

    ASKED = []

    @dataclass(frozen=True)
    class Told:
        right: int = 3

        def answers(self, model, context):
            context.tell("asking")
            ASKED.append((context.label, context.reference is None, context.weights_hash[:6]))
            right = self.right - (context.reference is not None)
            found = tuple(Answer(f"q/{i}", float(i < right), f"said {i}", "yes", f"is it {i}?") for i in range(4))
            return Answers(Metric("acc", True, 0.25), found, {"rows": "4"}, {"length": 2.0}, tokens=10, seconds=0.5)

    @dataclass(frozen=True)
    class Sizes:
        def compare(self, reference, candidate, context, meter):
            return (Figure("layers", "", 2.0, 2.0),)

    @dataclass(frozen=True)
    class Breaks:
        def answers(self, model, context):
            ASKED.append((context.label, "in vain"))
            raise EvaluationError(f"{context.label}: has no left hand, got two right ones; ask another")

    @dataclass(frozen=True)
    class Neither:
        pass

    @pytest.hookimpl(optionalhook=True)
    def pytest_llmslim_evals(config):
        names = {"told": ("right",), "sizes": (), "breaks": (), "neither": ()}
        return [
            Spec(name, f"conftest:{name.title()}", name, fields, origin="conftest.py") for name, fields in names.items()
        ]

    def pytest_sessionfinish(session):
        for asked in ASKED:
            print("\\nASKED", *asked)
"""
TESTS = """
    import pytest

    @pytest.mark.llm(recipes=["int8", "magnitude"], eval="told")
    def test_it(llm):
        found = llm.measure().evaluations[0]
        assert (found.name, found.metric, found.n) == ("told", "acc", 4)
        assert (found.reference, found.candidate) == (0.75, 0.5)
        assert (found.flips.right_to_wrong, found.flips.wrong_to_right) == (1, 0)
"""


@pytest.fixture
def asked(pytester, run):
    """Runs two recipes with evaluations of a conftest.py."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_own=TESTS)
    return run


def test_the_reference_is_asked_once(asked):
    """However many candidates there are; each of them is asked once, after it and with its answers."""
    result = asked("-s")

    result.assert_outcomes(passed=2)
    lines = [line for line in result.outlines if line.startswith("ASKED")]
    assert [line.split(" on ")[0] for line in lines] == [
        "ASKED The reference of int8",
        "ASKED int8",
        "ASKED magnitude",
    ]
    assert [line.split()[-2] for line in lines] == ["True", "False", "False"]
    assert 3 == len({line.split()[-1] for line in lines})


def test_the_table_shows_it(asked):
    """Once a model, with flips and figures."""
    asked("-q").stdout.fnmatch_lines(
        [
            "  told: acc, higher is better, chance 0.250, n = 4 (rows 4)",
            "*acc *ratio [[]95 %] *right -> wrong *wrong -> right *McNemar p *length",
            "*reference *0.750 *2.00",
            "*int8 *0.500 * 1 *0 *1.0 *2.00",
        ]
    )


def test_the_command_line_adds_evaluations(asked):
    """To those of the marker; one that needs both models at once has figures and no metric."""
    result = asked("--llm-eval", "sizes", "--llm-eval", "told(right=4)")

    result.stdout.fnmatch_lines(["  sizes: candidate / reference*", "*layers *2.00 *2.00 *-"])
    result.stdout.fnmatch_lines(["    magnitude on tiny-gpt2 is simulated, so it has no cost of its own"])
    result.stdout.fnmatch_lines(["  told(right=4): acc*"])


@pytest.mark.parametrize("locks", [True, False])
def test_costs_are_compared_beside_other_workers_that_rest(asked, pytester, locks):
    """Where nothing makes them rest, answers are had all the same."""
    if not locks:
        without = "import os, sys\nif 'PYTEST_XDIST_WORKER' in os.environ: sys.modules['fcntl'] = None\n"
        (pytester.path / "conftest.py").write_text(without + textwrap.dedent(CONFTEST))
    result = asked("--llm-eval", "sizes", "-n", "2")

    result.assert_outcomes(passed=2)
    reason = "    cost is not measured while 2 workers share the machine and nothing keeps them apart; run without -n"
    result.stdout.fnmatch_lines(["*layers *2.00 *2.00 *" if locks else reason])
    if locks:
        result.stdout.no_fnmatch_line(reason)


def test_what_breaks_is_named(asked):
    """The evaluation's name stands before its own sentence."""
    result = asked("--llm-eval", "breaks", "-s")

    result.stdout.fnmatch_lines(
        ["*breaks: The reference of int8 on tiny-gpt2: has no left hand, got two right ones; ask another*"]
    )
    result.assert_outcomes(errors=0, failed=2)
    # Without a network each failure takes half a minute.
    assert 1 == sum("in vain" in line and line.startswith("ASKED") for line in result.outlines)


@pytest.mark.parametrize(
    ("asked_for", "sentence"),
    [
        ("tol", "there is no evaluation 'tol' (did you mean told?); known are *arc_challenge, *"),
        ("boolqq", "there is no evaluation 'boolqq', and no such task of lm-eval; did you mean boolq*"),
        ("told(left=1)", "told has no parameter 'left'; it takes right"),
        ("told+told", "an evaluation stands alone, got 'told+told'; give --llm-eval once for each"),
        (
            "neither",
            "evaluation 'neither' from conftest.py points to conftest:Neither, which has neither answers(*",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(asked, asked_for, sentence):
    """A usage error that says what is known."""
    result = asked("--llm-eval", asked_for)

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines([f"*{sentence}*".replace("[", "[[]")])


def test_quality_names_what_is_evaluated(asked):
    """Else opt would rest on what nobody measures."""
    result = asked("--llm-quality", "arc_challenge")

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(
        [
            "*--llm-quality names what opt rests on, one of perplexity, told here, got 'arc_challenge'; "
            "add --llm-eval arc_challenge"
        ]
    )


def test_the_head_says_what_quality_is(asked):
    """Several measures, by name; with `-v` the score of each candidate with its parts."""
    result = asked("--llm-profile", "runtime", "-v")

    result.stdout.fnmatch_lines(
        ["profile runtime: opt = Q (0.9 T + 0.1 E), Q = mean of P^1.5 over perplexity + told, *"]
    )


def test_quality_without_evaluations_is_perplexity(asked, pytester):
    """Another name would leave opt without a value, so it is refused."""
    pytester.makepyfile(test_own=TESTS.replace(', eval="told"', ""))

    result = asked("--llm-quality", "told")
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(["*one of perplexity here, got 'told'; add --llm-eval told"])


def test_a_folder_of_tasks_that_is_not_there(asked, tmp_path):
    """Found before any candidate is built."""
    result = asked(f"--llm-data={tmp_path / 'nowhere'}")

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(
        ["*--llm-data is a folder of local tasks, got *nowhere, which is none; give its path."]
    )


def test_an_evaluation_without_a_name(asked, pytester):
    """In a marker; the command line refuses an empty value by itself."""
    pytester.makepyfile(test_own=TESTS.replace('eval="told"', 'eval=" "'))

    asked().stderr.fnmatch_lines(
        ["*an evaluation has a name, e.g. arc_challenge, got an empty text; name one"]
    )

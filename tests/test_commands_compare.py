"""`llmslim compare`: two stored runs by the rules of the gate."""

from __future__ import annotations

import dataclasses
import json

import pytest
from sample_records import blocks, evaluation, quality, record, side
from stored_runs import COMMIT, named, origin, store

from pytest_llmslim import runs
from pytest_llmslim.baselines import update
from pytest_llmslim.records import Integrity, no_estimate

OLD = [record(), named("int8")]
WORSE = named("int8", perplexity=quality(1.05), candidate=side(35.9, "d", 70_000))


@pytest.fixture
def pair(llmslim, tmp_path):
    """Compares two lists of records; returns what the command gave."""

    def compare(old, new, *words, **fields):
        paths = [store(tmp_path / "a", *old), store(tmp_path / "b", *new, **fields)]
        return llmslim("compare", *paths, *words)

    return compare


def table(found):
    """The lines of a comparison below its head, without indentation."""
    assert found.exit_code in (0, 1), found.output
    return [line.strip() for line in found.stdout.splitlines()[3:]]


def test_a_regression_stands_first_with_its_sentence(pair, tmp_path):
    """Then what passed; what is another number is shown from what to what."""
    found = pair(OLD, [record(), WORSE])
    assert found.stdout.splitlines() == [
        f"RUN_A {tmp_path}/a: 2 records of 2026-11-20T10:00:00Z at commit {COMMIT[:12]} on main; EPYC",
        f"RUN_B {tmp_path}/b: 2 records of 2026-11-20T10:00:00Z at commit {COMMIT[:12]} on main; EPYC",
        "",
        "embedded:gpt2",
        "  recipe  perplexity               time   energy  bytes  opt                      verdict",
        "  int8    1.020 -> 1.050 (+2.9 %)  0.800  0.700   0.140  0.773 -> 0.807 (+4.4 %)  failed",
        "  int4    1.020                    0.800  0.700   0.140  0.773                    passed",
        "",
        "failed: int8 on embedded:gpt2: perplexity ratio 1.050 [1.045, 1.055] was 1.020 in the baseline: 2.9 % over, "
        "limit 1 %. Accept with --llm-update, or find what made it worse.",
        "failed: int8 on embedded:gpt2: opt 0.807 [0.807, 0.807] was 0.773 [0.767, 0.778] in the baseline: 4.4 % over, "
        "limit 2 %. Accept with --llm-update, or find what made it worse.",
        "2 compared: 1 failed, 1 passed",
        f'next: mend it, or accept it: llmslim accept {tmp_path}/b --reason "why that is right"',
    ]


WIDE = named("int8", time=blocks(0.8, 0.2))
OTHER = named("int8", fingerprint={"cpu": "Xeon"})


@pytest.mark.parametrize(
    ("new", "plain", "fail", "strict"),
    [
        ([record(), named("int8")], 0, 0, 0),
        ([record(), WORSE], 0, 1, 1),
        ([record(), WIDE], 0, 0, 1),
        ([record(), OTHER], 0, 0, 1),
        ([record()], 0, 0, 1),
        ([*OLD, named("kd")], 0, 0, 0),
        ([named("kd")], 0, 1, 1),
        ([], 0, 1, 1),
    ],
    ids=["same", "worse", "undecided", "elsewhere", "gone", "new", "apart", "empty"],
)
def test_exit_codes(pair, new, plain, fail, strict):
    """1 only where it was asked for; a comparison of nothing is never a green one."""
    codes = [pair(OLD, new, *words).exit_code for words in ((), ("--fail",), ("--strict",))]
    assert codes == [plain, fail, strict]


def test_what_is_new_and_what_is_gone_is_named(pair):
    """With its test and suite, and counted."""
    lines = table(pair([record(), named("int8")], [record(), named("kd")]))
    assert lines[-3:] == [
        "new: kd on embedded:gpt2 (test_ptq in suites/test_ptq.py)",
        "gone: int8 on embedded:gpt2 (test_ptq in suites/test_ptq.py)",
        "1 compared: 1 passed, 1 new, 1 gone",
    ]
    assert table(pair([record()], [named("kd")]))[-1] == "nothing was compared: 1 new, 1 gone"
    assert table(pair([], []))[-1] == "nothing was compared"


def test_numbers_that_cannot_be_compared_stand_apart(pair):
    """With a bar instead of an arrow, and why; quality can be compared on another machine."""
    elsewhere = record(time=blocks(0.9), fingerprint={"cpu": "Xeon"})
    text = "\n".join(table(pair([record(energy=())], [elsewhere])))
    assert "int4    1.020       0.800 | 0.900  - | 0.700  0.140  - | 0.824  not comparable" in text
    assert (
        "a | b: two numbers that cannot be compared\ntime: fingerprint cpu is Xeon now and EPYC there" in text
    )
    assert "not comparable: int4 on embedded:gpt2: time is not comparable with the baseline" in text


def test_marks_and_words_are_those_of_the_summary(pair):
    """`~` for estimated energy, and `simulated` for what no kernel is faster for."""
    none = no_estimate("zeros", method="simulated")
    simulated = dataclasses.replace(named("rtn"), time=none, energy=none, stored_bytes=none, opt=none)
    estimated = {"energy_method": "estimated", "energy_source": "codecarbon"}
    records = [record(**estimated), simulated]
    lines = table(pair(records, [record(energy=blocks(0.9), **estimated), simulated]))
    assert "~0.700 -> ~0.900 (+28.6 %)" in lines[2]
    assert lines[3].split()[:2] == ["rtn", "1.020"]
    assert lines[3].count("simulated") == 4
    assert lines[3].endswith("passed")


def test_evaluations_that_moved_have_a_line(pair):
    """Also one that is not asked any more; a new one is said in the verdict."""
    first, second = evaluation(30, 2), evaluation(28, 4)
    lines = table(pair([record(evaluations=(first,))], [record(evaluations=(second,))]))
    assert lines[3].startswith("arc_challenge acc_norm ")
    assert "->" in lines[3]
    new = record(evaluations=(first,), asked=("perplexity",))
    lines = table(pair([record(asked=("perplexity",))], [new]))
    assert lines[2].endswith("passed, new")
    assert "arc_challenge" not in lines[3]
    lines = table(pair([record(evaluations=(first,))], [record()]))
    assert lines[3].startswith("arc_challenge acc_norm ")
    assert lines[3].endswith("| -")


# Limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "settings", "code"),
    [
        ((), {}, 1),
        (("--quality-regression", "3%"), {}, 0),
        (("--quality-regression", "2.9%"), {}, 1),
        ((), {"quality-regression": "0.03"}, 0),
        (("--quality-regression", "1%"), {"quality-regression": "0.03"}, 1),
    ],
)
def test_limits_are_given_or_those_of_the_run(pair, words, settings, code):
    """1.05 / 1.02 is 2.94 % more."""
    old = named("int8", energy=())
    new = dataclasses.replace(WORSE, energy=old.energy, opt=old.opt)
    found = pair([old], [new], "--fail", *words, origin=origin(settings=settings))
    assert found.exit_code == code


def test_limits_on_cost(pair):
    """A loss of 5 % in time fails under the defaults, and not where as much is allowed."""
    old, new = [record(energy=())], [record(energy=(), time=blocks(0.84))]
    assert pair(old, new, "--fail").exit_code == 1
    assert pair(old, new, "--fail", "--regression", "8%", "--resolve", "20%").exit_code == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--regression", "much"),
            "--regression is a percentage above -100 %, written like \"3%\", got 'much'.",
        ),
        (
            ("--regression", "20%"),
            "--resolve is above --regression, got 10 % and 20 %; a loss between the two may pass.",
        ),
        (
            ("--quality-regression", "-1%"),
            "--regression and --quality-regression are 0 % or more; give the size of a loss.",
        ),
    ],
)
def test_limits_that_make_no_sense_are_refused(pair, words, sentence):
    """In the words of this command."""
    found = pair(OLD, OLD, *words)
    assert (found.exit_code, found.stderr) == (2, f"Error: {sentence}\n")


# Forms ------------------------------------------------------------------------------------------------------


def test_every_form_of_a_run_can_be_compared(llmslim, tmp_path):
    """A folder, its records, a JSON export and a folder of baselines, with each other."""
    folder = store(tmp_path / "run", *OLD)
    update(tmp_path / "kept", OLD)
    (tmp_path / "run.json").write_text(runs.export(runs.read(folder)))
    paths = [folder, folder / "results.jsonl", tmp_path / "kept", tmp_path / "run.json"]
    for old in paths:
        for new in paths:
            found = llmslim("compare", old, new, "--strict")
            assert (found.exit_code, found.stdout.splitlines()[-1]) == (0, "2 compared: 2 passed")


def test_json_is_for_programs(pair):
    """Origins, the worst outcome, and of each key figures and verdicts; stdout holds nothing else."""
    found = pair(
        [record(), named("kd")],
        [record(perplexity=quality(1.05)), named("int8")],
        "--format",
        "json",
        "--fail",
    )
    assert found.exit_code == 1
    data = json.loads(found.stdout)
    assert data["outcome"] == "failed"
    assert data["old"]["commit"] == data["new"]["commit"] == COMMIT
    (compared,) = data["compared"]
    assert compared["key"]["recipe"] == "int4"
    figures = {change["figure"]: change for change in compared["changes"]}
    assert figures["perplexity"]["change"] == pytest.approx(1.05 / 1.02 - 1)
    assert figures["time"]["old"]["value"] == pytest.approx(0.8)
    assert "failed" in {verdict["outcome"] for verdict in compared["verdicts"]}
    assert [key["recipe"] for key in data["only_new"]] == ["int8"]
    assert [key["recipe"] for key in data["only_old"]] == ["kd"]
    assert (
        json.loads(pair([record()], [named("kd")], "--format", "json").stdout)["outcome"] == "not comparable"
    )


def test_what_is_new_and_not_compressed_is_failed_by_name(pair):
    """Exit code 1 has its reason in the text, and the JSON says failed too."""
    empty = named("int8", integrity=Integrity("nothing", "nothing is smaller"))
    found = pair([record()], [record(), empty], "--fail")
    assert found.exit_code == 1
    lines = found.stdout.splitlines()
    assert any(line.startswith("failed: int8 on embedded:gpt2: ") for line in lines)
    assert "1 compared: 1 passed, 1 new (1 failed)" in lines
    data = json.loads(pair([record()], [record(), empty], "--format", "json").stdout)
    assert data["outcome"] == "failed"


def test_markdown_is_for_pull_requests(pair, tmp_path):
    """The page of the reports, to a file; the folder is made."""
    found = pair(OLD, [record(), WORSE], "--format", "markdown", "-o", "out/comment.md")
    assert (found.exit_code, found.stdout) == (0, "comparison: out/comment.md\n")
    text = (tmp_path / "out/comment.md").read_text()
    assert text.startswith("## ")
    assert "`int8`" in text
    assert pair(OLD, [record(), WORSE], "--format", "markdown").stdout.strip() == text.strip()


def test_text_in_a_file_is_plain_and_whole(pair, tmp_path):
    """As in a pipe."""
    printed = pair(OLD, [record(), WORSE]).stdout
    pair(OLD, [record(), WORSE], "-o", "found.txt")
    assert (tmp_path / "found.txt").read_text() == printed


def test_a_file_that_cannot_be_written_is_said(pair, tmp_path):
    """With another way."""
    (tmp_path / "there").mkdir()
    found = pair(OLD, OLD, "-o", "there")
    assert (found.exit_code, found.stderr) == (
        2,
        "Error: there cannot be written (Is a directory); give another name with -o.\n",
    )


def test_a_narrow_terminal_leaves_old_values_out():
    """The change stays."""
    from pytest_llmslim.comparison import two_runs
    from pytest_llmslim.reports.two_runs import lines

    found = two_runs([named("int8")], [WORSE])
    needed = len(lines(found, 1000)[1][0])
    whole, narrow = ([text for text, _ in lines(found, columns)] for columns in (needed, needed - 1))
    assert "1.020 -> 1.050 (+2.9 %)" in whole[2]
    assert narrow[2].split()[:5] == ["int8", "1.050", "(+2.9", "%)", "0.800"]
    assert max(map(len, narrow[1:3])) < needed

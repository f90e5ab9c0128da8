"""The Markdown of a pull request: the answer first, short whatever the run, and what it quotes does nothing."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_records import KEY, blocks, evaluation, quality, record

from pytest_llmslim.comparison import two_runs, with_baselines
from pytest_llmslim.records import Verdict, no_estimate
from pytest_llmslim.reports.escaped import code, plain
from pytest_llmslim.reports.markdown import page, page_of_two
from pytest_llmslim.run_records import Missed, Origin, Run

ORIGIN = Origin(
    id="20261122T213533Z-eb40",
    started="2026-11-22T21:35:33Z",
    command="pytest suites/",
    commit="ae6a6e29be6a91f793dcac4acd05c8e6926acda4",
    changed=True,
    version="0.1.0",
)
OUTCOMES = ("failed", "inconclusive", "not comparable", "new", "passed")
HOSTILE = "<script>alert(1)</script>|`x`\n# @octocat [a](http://evil.example) #12 \\|*b*~c~ $m$ </details>"


def named(recipe, outcome="passed", axis="perplexity", model="gpt2", **fields):
    label = f"{recipe} on {model}"
    said = Verdict(axis, outcome, f"{label}: {axis} is {outcome}, limit 1 %.", "baseline")
    key = dataclasses.replace(KEY, recipe=recipe, model=model)
    return record(key=key, label=label, verdicts=(said,), **fields)


def shown(*records, old=(), **fields):
    run = Run(**{"origin": ORIGIN, "records": records, "baselines": tuple(old), **fields})
    return page(run, with_baselines(run))


def rows_of(text):
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [row for row in cells if row[0] not in ("verdict", "---", "new candidate")]


# The answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "headline"),
    [
        (("passed",), "## ✅ Passed: 1 of 1 candidate passed"),
        (("passed", "new"), "## 🆕 New: none of 2 candidates failed, and 1 have nothing to be compared with"),
        (
            ("passed", "not comparable"),
            "## ⚠️ Not comparable: none of 2 candidates failed, and 1 could not be",
        ),
        (
            ("inconclusive", "new"),
            "## ⚠️ Inconclusive: none of 2 candidates failed, and 1 could not be decided",
        ),
        (
            OUTCOMES,
            "## ❌ Failed: 1 of 5 candidates failed (1 inconclusive, 1 not comparable, 1 new, 1 passed)",
        ),
    ],
)
def test_the_first_line_is_the_answer(outcomes, headline):
    """In words, with a sign; the worst outcome wins, and the others are counted."""
    text = shown(*(named(f"r{i}", outcome) for i, outcome in enumerate(outcomes)))
    assert text.splitlines()[0].startswith(headline)


@pytest.mark.parametrize(
    ("fields", "headline"),
    [
        ({"unmeasured": (Missed("int4", "boom"),)}, "; 1 tests measured nothing"),
        ({"missing": ("gone",)}, "; 1 tests of the baselines were not compared"),
        ({"interrupted": True}, "; the run was interrupted"),
    ],
)
def test_what_was_not_measured_is_part_of_the_answer(fields, headline):
    """A pass of half the candidates does not look like a pass."""
    first = shown(named("int8"), **fields).splitlines()[0]
    assert first == f"## ⚠️ Passed, but not all was measured: 1 of 1 candidate passed{headline}"


def test_a_run_without_records_or_verdicts_does_not_pass():
    """No number is no answer."""
    assert shown(unmeasured=(Missed("int4", "boom"),)).startswith("## ⚠️ Nothing was measured; 1 tests")
    assert shown(record()).startswith("## ⚠️ Not compared: 1 candidate without a verdict\n")


# What changed -----------------------------------------------------------------------------------------------


def test_rows_are_regressions_first_then_the_largest_change():
    """Then and now with the interval, the change, and the word of the gate."""
    old = [named(name) for name in "abcd"]
    new = [
        named("a", perplexity=quality(1.01)),
        named("b", "inconclusive", "time", time=blocks(0.88)),
        named("c", "failed", perplexity=quality(1.122)),
        named("d"),
    ]
    rows = rows_of(shown(*new, old=old))
    assert rows[0] == ["**failed**", "`c` on `gpt2`", "perplexity", "1.020 → 1.122 [1.116, 1.128]", "+10.0 %"]
    assert [row[:3] for row in rows[1:3]] == [
        ["**inconclusive**", "`b` on `gpt2`", "time"],
        ["not judged, worse", "`c` on `gpt2`", "opt"],
    ]
    assert [
        "passed, better",
        "`a` on `gpt2`",
        "perplexity",
        "1.020 → 1.010 [1.005, 1.015]",
        "-0.98 %",
    ] in rows
    assert not any("`d`" in row[1] for row in rows)


@pytest.mark.parametrize(("against", "cell"), [("threshold", "against a limit"), ("anchor", "+10.0 %")])
def test_a_limit_is_not_about_the_change_from_the_baseline(against, cell):
    """A candidate may be as it was and past the limit all the same."""
    new = named("a", perplexity=quality(1.122))
    new = dataclasses.replace(new, verdicts=(Verdict("perplexity", "failed", "a: too much.", against),))
    assert rows_of(shown(new, old=[named("a")]))[0][-1] == cell


def test_sentences_of_what_failed_stand_below():
    """With the limit and the next step, failed before inconclusive."""
    text = shown(named("b", "inconclusive"), named("a", "failed"))
    assert text.index("- a on gpt2: perplexity is failed, limit 1 %.") < text.index(
        "- b on gpt2: perplexity is"
    )
    assert "**Why** (2):" in text


def test_wall_time_integrity_and_evaluations_have_rows():
    """Verdicts on what is no figure of the table are shown all the same."""
    exam = evaluation(both=18)
    new = named("a", "failed", "wall", evaluations=(exam,))
    bad = (
        *new.verdicts,
        Verdict("evaluation", "failed", "a: fell.", "baseline", evaluation="arc_challenge"),
        Verdict("integrity", "failed", "a: nothing was compressed.", "integrity"),
    )
    rows = rows_of(
        shown(dataclasses.replace(new, verdicts=bad), old=[named("a", evaluations=(evaluation(),))])
    )
    assert {row[2]: row[3] for row in rows if "failed" in row[0]} == {
        "wall time": "0.800 → 0.800 [0.800, 0.800]",
        "arc_challenge acc_norm": f"1.000 → {exam.ratio.value:.3f} [{exam.ratio.low:.3f}, {exam.ratio.high:.3f}]",
        "compression": "-",
    }


def test_estimated_energy_is_marked_and_explained():
    """A tilde at the number, and once what it means; simulated is a word."""
    old = named("a", energy_method="estimated", energy_source="codecarbon")
    new = named(
        "a", "failed", "energy", energy=blocks(0.9), energy_method="estimated", energy_source="codecarbon"
    )
    text = shown(new, old=[old])
    assert r"\~0.700 → \~0.900 [0.900, 0.900]" in text
    assert r"\~ energy is estimated by a model (codecarbon)." in text
    simulated = named("b", "new", energy=(), time=())
    simulated = dataclasses.replace(simulated, energy=no_estimate("only rounded.", method="simulated"))
    text = shown(simulated)
    assert rows_of(text) == [["`b` on `gpt2`", "1.020", "unmeasured", "simulated", "0.140", "unmeasured"]]
    assert "\ntime unmeasured: no energy meter; energy simulated: only rounded.\n" in text


def test_a_reason_that_several_figures_share_is_said_once():
    """Weights that are only rounded have neither time nor energy."""
    rounded = no_estimate("only rounded.", method="simulated")
    text = shown(dataclasses.replace(named("b", "new"), time=rounded, energy=rounded))
    assert "\ntime and energy simulated: only rounded.\n" in text
    assert "energy simulated: only rounded." in text


def test_a_reason_is_said_once():
    """Another machine makes all costs incomparable for one and the same reason."""
    text = shown(*(named(f"r{i}", "not comparable", "time") for i in range(30)))
    assert "- 30 candidates: time is not comparable, limit 1 %.\n" in text
    assert text.count("limit 1 %") == 1


def test_new_candidates_are_ranked_and_new_evaluations_counted():
    """Best first by opt; an evaluation that is new makes no new candidate."""
    asked = Verdict("evaluation", "new", "x: new.", "baseline", evaluation="piqa")
    known = dataclasses.replace(named("old"), verdicts=(asked,))
    text = shown(named("b", "new"), named("a", "new", time=blocks(0.5)), known)
    assert [row[0] for row in rows_of(text)] == ["`a` on `gpt2`", "`b` on `gpt2`"]
    assert "**New evaluations**, with the number of candidates: `piqa` (1)" in text


@pytest.mark.parametrize(
    ("records", "step"),
    [
        (
            [named("a", "failed")],
            "Next: make it better, or, where the loss is meant, accept it with `llmslim accept",
        ),
        (
            [named("a", "new")],
            'Next: store what is new with `llmslim accept llm-results --reason "..."`, or by a run',
        ),
        ([named("a", perplexity=quality(1.0))], "Next: keep what became better with"),
        ([named("a")], None),
    ],
)
def test_the_next_step_follows_from_the_outcome(records, step):
    """Accepting is offered where there is something to accept."""
    text = shown(*records, old=[named("a")] if step is None or "better with" in step else [])
    assert (step in text) if step else ("Next:" not in text)
    assert "goes on where it stopped" in shown(*records, interrupted=True)


def test_a_loss_beside_the_anchor_is_accepted_with_the_anchor():
    """A plain accept would leave the next run red."""
    verdict = Verdict("perplexity", "failed", "worse than the anchor", "anchor")
    step = next(line for line in shown(record(verdicts=(verdict,))).splitlines() if line.startswith("Next:"))
    assert '--reason "..." --anchor`' in step
    assert "`--llm-update --llm-anchor`" in step


def test_the_footer_says_where_it_comes_from():
    """Commit, command, profile, device, text, and how much was compared."""
    last = shown(named("a"), named("b"), old=[named("a")]).splitlines()[-1]
    assert last == (
        "commit `ae6a6e29be6a` with changed files, `pytest suites/`, profile balanced, on EPYC, "
        "text embedded abababababab, run `20261122T213533Z-eb40`, pytest-llmslim 0.1.0, "
        "1 of 2 compared with a baseline."
    )


def test_two_runs_say_what_is_gone_and_where_both_come_from():
    """The older run stands in the place of the baselines."""
    old = Run(Origin(id="first"), (record(), named("gone")))
    new = Run(ORIGIN, (record(perplexity=quality(1.2)),))
    text = page_of_two(old, new, two_runs(old.records, new.records))
    assert text.startswith("## ❌ Failed: 1 of 1 candidate failed\n")
    assert "**Gone** (1): `gone` on `gpt2`" in text
    assert text.splitlines()[-1].startswith(
        "Then: profile balanced, on EPYC, text embedded abababababab, run `first`."
    )
    assert "Now: commit `ae6a6e29be6a`" in text.splitlines()[-1]


# Size -------------------------------------------------------------------------------------------------------


def crowd(count, name="r"):
    """Every outcome and every list, longer than its place."""
    old, new = [], []
    for i in range(count):
        outcome = OUTCOMES[i % 5]
        # Keep reasons apart, so that they cannot be grouped.
        key = f"{name}{i}"
        extra = {"perplexity": quality(1.03 + i / 100), "evaluations": (evaluation(name=f"{name} {i}"),)}
        if i % 10 == 9:
            new.append(named(key, model=name))
            old.append(new[-1])
            continue
        new.append(named(key, outcome, "time", model=name, **extra))
        if outcome != "new":
            old.append(named(key, model=name, energy_method="estimated"))
        asked = Verdict("evaluation", "new", "x", "baseline", evaluation=f"{name} {i}")
        new[-1] = dataclasses.replace(new[-1], verdicts=(*new[-1].verdicts, asked))
    missed = tuple(Missed(f"{name}{i}", f"{name} boom {i}") for i in range(20))
    return (
        new,
        old,
        {"unmeasured": missed, "missing": tuple(f"{name} {i}" for i in range(20)), "interrupted": True},
    )


@pytest.mark.parametrize("count", [1, 5, 68, 500])
def test_a_page_is_under_sixty_lines(count):
    """Whatever the size of the run, with the worst of it kept."""
    new, old, fields = crowd(count)
    text = shown(*new, old=old, **fields)
    assert len(text.splitlines()) < 60
    failed = sum(each.outcome == "failed" for each in new)
    assert sum("**failed**" in row[0] for row in rows_of(text)) >= min(failed, 7)
    if count == 500:
        assert re.search(r"\nand \d{3} more changes, in the files of the run.\n", text)


def test_room_that_others_leave_is_given_to_changes():
    """Fifty regressions and nothing else fill the page."""
    records = [named(f"r{i}", "failed") for i in range(80)]
    text = shown(*records, old=[named(record.key.recipe) for record in records])
    assert 55 <= len(text.splitlines()) < 60
    assert len(rows_of(text)) > 35


def test_a_comment_holds_the_largest_page():
    """GitHub refuses comments of more than 65,536 characters; names here are as long and as costly as they get."""
    new, old, fields = crowd(500, HOSTILE * 20)
    text = shown(*new, old=old, **fields)
    assert len(text) < 65_536
    assert len(text.splitlines()) < 60


# Texts of others --------------------------------------------------------------------------------------------


def rendered(text):
    """As GitHub reads it: CommonMark with tables; addresses become links where linkify-it-py is installed."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return markdown.render(text)


def test_names_open_no_tag_no_link_and_no_cell():
    """A model may be called anything; the table stays a table and nobody is notified."""
    new, old, fields = crowd(10, HOSTILE)
    text = shown(*new, old=old, **fields)
    html = rendered(text)
    assert "<script" not in html
    assert "<a " not in html
    assert "<em>" not in html
    assert "<s>" not in html
    assert html.count("<details>") == html.count("</details>") == 1
    assert all(len(row) in (5, 6) for row in rows_of(text))
    assert {row.count("<td>") for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL)} <= {0, 5, 6}
    outside = re.sub(r"`[^`\n]*`", "", text)  # GitHub looks into no code
    assert not re.search(r"@\w|(?<!&)#\d|http://|\$m", outside.replace(r"\$", ""))


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("int4 on gpt2: 1.1 % [0.9, 1.3] over", "int4 on gpt2: 1.1 % [0.9, 1.3] over"),
        ("max_perplexity_increase", "max_perplexity_increase"),
        ("_x_ ~1 a|b", r"\_x\_ \~1 a&#124;b"),
        ("a <b> & c", "a &lt;b> &amp; c"),
        ("[x](y) [x][y] [x]: y", r"[x]\(y) [x]\[y] [x]\: y"),
        (
            "@me a@b #7 www.x.org https://x",
            "@&#8203;me a@&#8203;b #&#8203;7 www&#8203;.x.org https:&#8203;//x",
        ),
        ("two\r\n\tlines\x00\u2028and\u202emore", "two lines andmore"),
    ],
)
def test_plain_text_looks_as_it_is(text, safe):
    """Ordinary sentences stay readable in the source; the rest is taken its meaning."""
    assert plain(text) == safe


@given(st.text())
def test_any_text_is_one_line_of_itself(text):
    """Nothing becomes a tag, a link or a second cell, and the text can be read off the page again."""
    html = rendered(f"| {plain(text)} | {code(text)} |\n| --- | --- |\n| {plain(text)} | {code(text)} |")
    assert html.count("<td>") == html.count("<th>") == 2
    assert set(re.findall(r"<(\w+)", html)) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert "\n" not in plain(text) + code(text)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("kd+int4", "`kd+int4`"),
        ("a|b", "<code>a&#124;b</code>"),
        ("`", r"<code>\`</code>"),
        ("", "<code></code>"),
    ],
)
def test_names_are_code(text, safe):
    """Set in backticks where these hold, which is nearly always."""
    assert code(text) == safe
    assert len(code("x" * 300)) == 82

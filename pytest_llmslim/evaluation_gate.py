"""The gate on evaluations: questions are few, so a limit is passed or failed only where that is sure.

Against a limit an evaluation is *failed* where its ratio is surely past it, *passed* where it is surely inside, and
*inconclusive* otherwise. What a wrong `failed` may cost, 1 % a record, is shared over its evaluations and all that
they are held against (Bonferroni); it does not depend on how often time was looked at, since that asks no new question.

Against a stored run of the same questions it is *failed* where the metric fell by more than the limit on quality and
McNemar's exact test on the answers of then and now says that this is no chance.
"""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_llmslim import units
from pytest_llmslim.comparability import evaluation_difference
from pytest_llmslim.judging import interval_of, over
from pytest_llmslim.proportions import accuracy_ratio, changes
from pytest_llmslim.regression import ACCEPT, ANEW, BETTER, limits_of
from pytest_llmslim.score import PERPLEXITY, guesses
from pytest_llmslim.sequential import ALPHA
from pytest_llmslim.statistics import CONFIDENCE, Interval, mcnemar, needed_samples, t_quantile

if TYPE_CHECKING:
    from pytest_llmslim.judging import Case
    from pytest_llmslim.records import Against, Evaluation, Outcome, Record, Verdict


_DROP: Final = "max_accuracy_drop"


class _Rule(NamedTuple):
    """A limit on an evaluation: the option's name, the share, and the ratio on the limit."""

    name: str
    share: float
    bound: float


# Limits -----------------------------------------------------------------------------------------------------


def thresholds_on_evaluations(case: Case) -> list[Verdict]:
    """A verdict on each evaluation that has a metric and a limit."""
    found = [_threshold(case, each, rule) for each, rule in _rules(case)]
    share = case.thresholds.max_accuracy_drop
    if share is None or any(rule.name == _DROP for _, rule in _rules(case)):
        return found
    text = f"{_DROP} {units.percent_limit(share)} cannot be checked: there is no evaluation that it holds for"
    return [*found, case.verdict("evaluation", "inconclusive", f"{text}; add one with --llm-eval.")]


def _rules(case: Case) -> list[tuple[Evaluation, _Rule]]:
    rules = [(each, _rule(case, each)) for each in _with_metric(case.record)]
    return [(each, rule) for each, rule in rules if rule]


def _with_metric(record: Record) -> list[Evaluation]:
    return [each for each in record.evaluations if each.metric]


def _alpha(case: Case) -> float:
    """The part of one decision that rests on chance: on a limit, or on the answers of a stored run."""
    decisions = len(_rules(case))
    answered = {each.name for each in case.record.evaluations if each.candidate_right}
    for stored in (case.baseline, case.anchor):
        decisions += sum(each.name in answered for each in stored.evaluations) if stored else 0
    return ALPHA / max(1, decisions)


def _rule(case: Case, evaluation: Evaluation) -> _Rule | None:
    """The limit; the perplexity of a kind of text is held against that on perplexity."""
    limits = case.thresholds
    if _is_text(evaluation):
        name, share = "max_perplexity_increase", limits.max_perplexity_increase
    else:
        name, share = _DROP, limits.max_accuracy_drop
    if share is None:
        return None
    return _Rule(name, share, 1 - share if evaluation.higher_is_better else 1 + share)


def _threshold(case: Case, each: Evaluation, rule: _Rule) -> Verdict:
    limit = units.percent_limit(rule.share)
    reason = _unusable(each)
    if reason:
        text = f"{rule.name} {limit} cannot be checked on {each.name}: {reason}."
        return case.verdict("evaluation", "inconclusive", text, evaluation=each.name)
    now = _bounds(each, _alpha(case), case.limits.pass_alpha)
    outcome = _outcome(each, now, rule.bound)
    # The sign tells a limit downwards from one upwards.
    change = units.change(*now[:3], limit=-rule.share if each.higher_is_better else rule.share)
    text = f"{_shown(each, each.candidate)} is {change} the reference's {units.significant(each.reference)}"
    text += f", limit {limit}{_flipped(each.reference_right, each.candidate_right)}"
    text += {
        "failed": f". Raise {rule.name}, or compress less.",
        "passed": ".",
        "inconclusive": f": undecided. {_undecided(each, now, rule.bound)}",
    }[outcome]
    return case.verdict("evaluation", outcome, text, evaluation=each.name)


def _unusable(each: Evaluation) -> str:
    """Why a limit says nothing about an evaluation; empty when it does."""
    return guesses(each) if each.ratio.known else each.ratio.reason


def _bounds(each: Evaluation, fail_miss: float, pass_miss: float) -> Interval:
    """The ratio with one-sided bounds: that which fails and that which passes miss with the chances given."""
    low, high = (pass_miss, fail_miss) if each.higher_is_better else (fail_miss, pass_miss)
    if _is_share_right(each):
        # Right answers, or wrong ones where fewer of those are better.
        one = "1" if each.higher_is_better else "0"
        pairs = list(zip(each.reference_right, each.candidate_right, strict=True))
        both = pairs.count((one, one))
        lost = each.reference_right.count(one) - both
        won = each.candidate_right.count(one) - both
        return accuracy_ratio(both, lost, won, each.n, miss_low=low, miss_high=high)
    return _at(interval_of(each.ratio), low, high)


def _is_share_right(each: Evaluation) -> bool:
    """Whether the metric is the share of right answers, and not something else about them."""
    return each.flips is not None and each.protocol.get("total", "mean") == "mean"


def _at(shown: Interval, miss_low: float, miss_high: float) -> Interval:
    """Bounds at other levels than the 95 % that are stored, on the scale of the logarithm where there is one.

    With as few degrees of freedom as the widest kernel of `mean_interval` leaves: rather too wide.
    """
    value, low, high, n = shown
    degrees = max(1.0, n / math.ceil(1.3 * math.sqrt(n)))

    def moved(bound: float, miss: float) -> float:
        wider = t_quantile(1 - 2 * miss, degrees) / t_quantile(CONFIDENCE, degrees)
        if not math.isfinite(bound) or not math.isfinite(value):
            return bound
        if value > 0 and bound >= 0:
            return float(value * (bound / value) ** wider)
        return value + wider * (bound - value)

    return Interval(value, moved(low, miss_low), moved(high, miss_high), n)


def _past(each: Evaluation, ratio: float, bound: float) -> bool:
    return over(bound, ratio) if each.higher_is_better else over(ratio, bound)


def _outcome(each: Evaluation, now: Interval, bound: float) -> Outcome:
    best, worst = (now.high, now.low) if each.higher_is_better else (now.low, now.high)
    if _past(each, best, bound):
        return "failed"
    return "inconclusive" if _past(each, worst, bound) else "passed"


def _undecided(each: Evaluation, now: Interval, bound: float) -> str:
    """What is excluded, and how many questions would settle it."""
    if each.higher_is_better:
        excluded = (
            f"A ratio below {units.ratio(now.low)} is excluded" if now.low > 0 else "Nothing is excluded"
        )
        value, high, low = (1 / ratio if ratio > 0 else math.inf for ratio in now[:3])
        upright = Interval(value, low, high, now.n)
        limit = 1 / bound if bound > 0 else math.inf
    else:
        known = math.isfinite(now.high)
        excluded = f"A ratio above {units.ratio(now.high)} is excluded" if known else "Nothing is excluded"
        upright, limit = now, bound
    needed = needed_samples(upright, fail_above=limit, pass_below=limit)
    if needed is None:
        return f"{excluded}; more {'windows of text' if _is_text(each) else 'questions'} would not help."
    if _is_text(each):
        return f"{excluded}; about {needed} windows of text would settle it (windows={needed})."
    return f"{excluded}; about {needed} questions would settle it (--llm-limit {needed})."


def _is_text(each: Evaluation) -> bool:
    """Whether it is the perplexity of a kind of text."""
    return each.metric == PERPLEXITY and not each.higher_is_better


def _shown(each: Evaluation, value: float | None) -> str:
    return f"{each.name} {each.metric} {units.significant(value)}"


def _flipped(before: str, after: str) -> str:
    """How many answers changed, where they are right or wrong."""
    if not before:
        return ""
    lost, won = changes(before, after)
    return (
        f"; {lost} right {'answer' if lost == 1 else 'answers'} went wrong, "
        f"{won} wrong {'one' if won == 1 else 'ones'} right"
    )


# Stored runs ------------------------------------------------------------------------------------------------


def regressions(case: Case, stored: Record, against: Against, *, required: bool = False) -> list[Verdict]:
    """A verdict on each evaluation that is in both records; and one on each that only the baseline has.

    Args:
        case: what was measured, and the rules.
        stored: what it is compared with.
        against: whether that is the baseline or the anchor.
        required: an evaluation that the baseline lacks is failed instead of new.
    """
    then = {each.name: each for each in _with_metric(stored)}
    found = []
    for each in _with_metric(case.record):
        if each.name in then:
            found.append(_regression(case, stored, each, then.pop(each.name), against))
        elif against == "baseline":
            text = f"{each.name} has no baseline; write one with --llm-update and commit it."
            outcome: Outcome = "failed" if required else "new"
            found.append(case.verdict("evaluation", outcome, text, against, evaluation=each.name))
    if against == "baseline":
        found += [_not_asked(case, name) for name in then]
    return found


def _not_asked(case: Case, name: str) -> Verdict:
    asked = f"--llm-eval {shlex.quote(name)}"
    text = f"{name} is in the baseline and was not asked for now; add {asked}, or use --llm-update."
    return case.verdict("evaluation", "not comparable", text, "baseline", evaluation=name)


def _regression(case: Case, stored: Record, now: Evaluation, then: Evaluation, against: Against) -> Verdict:
    def verdict(outcome: Outcome, text: str) -> Verdict:
        return case.verdict("evaluation", outcome, text, against, evaluation=now.name)

    reason = evaluation_difference(case.record, stored, now, then)
    if reason:
        rest = f"{reason}; measure alike, or use {ANEW[against]}."
        return verdict("not comparable", f"{now.name} is not comparable with the {against}: {rest}")
    was = f"{_shown(now, now.candidate)} was {units.significant(then.candidate)} in the {against}"
    rights = then.candidate_right, now.candidate_right
    if not all(rights):  # scores that were right or wrong in one of the runs only are shares
        rights = "", ""
    elif rights[0] == rights[1]:
        return verdict("passed", f"{was}, with the same answers right.")
    limit = limits_of(case, against).baseline_perplexity
    text = f"{was}{_changed(now, then, limit)}, limit {units.percent_limit(limit)}"
    text += _flipped(*rights)
    if not _worse(now, then, limit):
        better = against == "baseline" and _worse(then, now, limit)
        return verdict("passed", f"{text}. {BETTER}" if better else f"{text}.")
    if rights[0]:
        p = mcnemar(*changes(*rights)).worse
        if p > _alpha(case):
            text += f": undecided. Chance alone does that in {units.percent(p, signed=False)} of cases; "
            return verdict("inconclusive", f"{text}ask more questions (--llm-limit), or use {ANEW[against]}.")
    return verdict("failed", f"{text}. {ACCEPT[against]}")


def _changed(now: Evaluation, then: Evaluation, limit: float) -> str:
    """The change in words, where a ratio says something."""
    new, old = now.candidate or 0.0, then.candidate or 0.0
    if not (new > 0 and old > 0):
        return ""
    ratio = 1.0 if new == old else new / old
    return f": {units.change(ratio, limit=-limit if now.higher_is_better else limit)}"


def _worse(now: Evaluation, then: Evaluation, limit: float) -> bool:
    """Whether `now` is worse than `then` by more than a share, and not only by rounding."""
    new, old = now.candidate or 0.0, then.candidate or 0.0
    if new == old or not math.isfinite(old):
        return now.higher_is_better and new < old
    lost = old - new if now.higher_is_better else new - old
    return over(lost, limit * abs(old)) and not math.isclose(new, old, rel_tol=1e-5)

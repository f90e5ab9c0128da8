"""The score of the paper: `opt = Q * (alpha * T + beta * E)`, lower is better.

`T` and `E` are candidate / reference of time and energy. `Q` is the mean of `P ** 1.5` over the quality
metrics, each `P` oriented so that worse is above 1; with perplexity alone that is `(c / r) ** 1.5`.

Source: Optimization Strategies for Enhancing Resource Efficiency in Transformers & Large Language Models,
arXiv 2502.00046. The paper prints some of its ratios upside down, and one summary of it prints a division.
This is the only reading under which lower is better *and* the axes of its figure 5 fit: Sheared-LLaMA-1.3B
under the runtime profile comes to about 2.46 on the logic tasks, where the last tick of the axis is 2.5, and
to about 1.02 on perplexity, where the last tick is 1.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_llmslim import units
from pytest_llmslim.errors import ScoreError, SettingError
from pytest_llmslim.readings import MARK
from pytest_llmslim.records import Estimate, Method, Profile, no_estimate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.records import Evaluation, Record

PROFILES: Final = {
    "balanced": Profile("balanced", 0.5, 0.5),
    "energy": Profile("energy", 0.1, 0.9),
    "runtime": Profile("runtime", 0.9, 0.1),
}

PERPLEXITY: Final = "perplexity"
_EXPONENT: Final = 1.5
_CHANCE_SHARE: Final = 0.8

_AND: Final = " + "

# What a score inherits from its parts, worst first.
_METHODS: Final[tuple[Method, ...]] = ("simulated", "unmeasured", "estimated", "sampled", "measured")


@dataclass(frozen=True, slots=True)
class LowerIsBetter:
    """A quality metric like perplexity; an infinite one is worthless in a candidate, wrong in a reference."""

    candidate: float
    reference: float
    name: str = "perplexity"

    def worsening(self) -> float:
        """`candidate / reference`; above 1 is worse.

        Raises:
            ScoreError: a part that is missing, NaN, zero or negative, or a reference that is infinite.
        """
        reference = _positive(f"the reference's {self.name}", self.reference)
        if self.candidate == math.inf:
            return math.inf
        return _positive(f"the candidate's {self.name}", self.candidate) / reference


@dataclass(frozen=True, slots=True)
class HigherIsBetter:
    """A quality metric like accuracy, with the level that guessing reaches (`chance`; 0: there is none)."""

    candidate: float
    reference: float
    chance: float = 0.0
    name: str = "accuracy"

    def worsening(self) -> float:
        """`(r - 0.8 chance) / (c - 0.8 chance)`; above 1 is worse, infinity when the candidate is at chance.

        Raises:
            ScoreError: a part that is missing, not finite or negative, or a reference that is at chance: the
                metric then says nothing about the candidate.
        """
        floor = _CHANCE_SHARE * _at_least_0(f"the chance level of {self.name}", self.chance)
        reference = _at_least_0(f"the reference's {self.name}", self.reference)
        candidate = _at_least_0(f"the candidate's {self.name}", self.candidate)
        if reference <= floor:
            raise ScoreError(
                f"the reference's {self.name} is above {floor:g}, or it says nothing about the candidate, "
                f"got {reference:g} with a chance level of {self.chance:g}; use another metric"
            )
        return math.inf if candidate <= floor else (reference - floor) / (candidate - floor)


def quality(parts: Sequence[LowerIsBetter | HigherIsBetter]) -> float:
    """`Q`: the mean of `P ** 1.5` over all metrics; the mean is not raised again.

    Raises:
        ScoreError: no metric, or an unusable part of one.
    """
    if not parts:
        raise ScoreError("a score rests on at least one quality metric, got none")
    return math.fsum(_power(part.worsening()) for part in parts) / len(parts)


def opt(
    parts: Sequence[LowerIsBetter | HigherIsBetter],
    time_ratio: float | None,
    energy_ratio: float | None,
    profile: Profile,
) -> float:
    """`Q * (alpha * T + beta * E)`; infinity for a worthless candidate, 1 for the reference itself.

    Args:
        parts: the quality metrics.
        time_ratio: candidate / reference; `None` only where the profile gives time no weight.
        energy_ratio: candidate / reference; `None` only where the profile gives energy no weight.
        profile: the weights.

    Raises:
        ScoreError: a part that is missing, NaN, zero, negative or, but for a candidate's quality, infinite.
    """
    cost = 0.0
    for name, ratio, weight in (("time", time_ratio, profile.alpha), ("energy", energy_ratio, profile.beta)):
        if ratio is not None or weight > 0:
            cost += weight * _positive(f"the {name} ratio", ratio)
    return _above_0("the score", quality(parts) * cost)


def opt_estimate(worsening: Estimate, time: Estimate, energy: Estimate, profile: Profile) -> Estimate:
    """The score with a conservative interval: it grows with every part, so bounds of parts give its bounds.

    A part of weight 0 is not looked at. The result is `simulated` or `unmeasured`, with the reason, when a
    part is, and `estimated` or `sampled` when one is; `n` is the smallest of its parts.

    Args:
        worsening: of quality, above 1 is worse: the ratio of perplexities, or what `combined` makes of several.
        time: ratio candidate / reference.
        energy: ratio candidate / reference.
        profile: the weights.

    Raises:
        ScoreError: a part with a value that is no ratio.
    """
    parts = {"quality": worsening}
    parts |= {"time": time} if profile.alpha > 0 else {}
    parts |= {"energy": energy} if profile.beta > 0 else {}
    source = "+".join(dict.fromkeys(part.source for part in parts.values()))
    name, worst = min(parts.items(), key=lambda item: _METHODS.index(_method(item[1])))
    if not worst.known:
        return no_estimate(f"{name}: {worst.reason}", method=_method(worst), source=source)
    time_ratio = time.value if profile.alpha > 0 else None
    energy_ratio = energy.value if profile.beta > 0 else None
    value = opt([LowerIsBetter(worsening.value or 0, 1.0)], time_ratio, energy_ratio, profile)
    low = _bound([part.low or 0.0 for part in (worsening, time, energy)], profile)
    high = _bound([math.inf if p.high is None else p.high for p in (worsening, time, energy)], profile)
    return Estimate(value, low, high, min(p.n for p in parts.values()), worst.method, source)


class Combined(NamedTuple):
    """What `opt` rests on.

    Args:
        worsening: of quality over all measures; `None`: perplexity is the only one.
        scored: names of the evaluations that are part of it.
        notes: which evaluations are not, and why.
    """

    worsening: Estimate | None
    scored: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def marked(self, evaluations: Iterable[Evaluation]) -> tuple[Evaluation, ...]:
        """The evaluations, each knowing whether it is scored."""
        return tuple(replace(each, scored=each.name in self.scored) for each in evaluations)


def combined(perplexity: Estimate, evaluations: Sequence[Evaluation], asked: Sequence[str] = ()) -> Combined:
    """The worsening over several measures, `mean(P ** 1.5) ** (2 / 3)`, which `opt` raises to 1.5 again.

    It grows with every part, so bounds of parts give its bounds.

    Args:
        perplexity: its ratio candidate / reference.
        evaluations: of the record.
        asked: the measures to rest on, `perplexity` and names of evaluations. Without any: perplexity where there is
            one, and every evaluation whose chance level is known, but for those where the reference only guesses. A
            measure that was asked for is never left out: where it cannot be scored, the result is unmeasured with
            the reason.
    """
    known = [each.name for each in evaluations if each.metric and each.chance is not None]
    named = {each.name: each for each in evaluations}
    wanted = asked or ((PERPLEXITY, *known) if perplexity.known else known)
    parts, notes = {}, []
    # In one order however they were asked for, so that two runs can be compared.
    for name in sorted(set(wanted), key=[PERPLEXITY, *named, *wanted].index):
        reason = "" if asked or name not in named else guesses(named[name])
        if reason:
            notes.append(f"{name} is no part of opt: {reason}")
            continue
        try:
            parts[name] = perplexity if name == PERPLEXITY else worsening_of(name, named.get(name))
        except ScoreError as error:
            if asked:
                return Combined(no_estimate(str(error), source=name))
            notes.append(f"{name} is no part of opt: {error}")
    if not parts.keys() - {PERPLEXITY}:
        return Combined(None, notes=tuple(notes))
    return Combined(_together(parts), frozenset(parts) - {PERPLEXITY}, tuple(notes))


def guesses(evaluation: Evaluation) -> str:
    """That the reference does no better than guessing: then a candidate that guesses too has lost nothing."""
    reference, chance = evaluation.reference, evaluation.chance
    if reference is None or chance is None:
        return ""
    better, worse = (reference, chance) if evaluation.higher_is_better else (chance, reference)
    if better > worse * (1 + 1e-9):
        return ""
    found, guessing = units.significant(reference), units.significant(chance)
    return f"the reference's {evaluation.metric} {found} is no better than guessing, {guessing}"


def worsening_of(name: str, evaluation: Evaluation | None) -> Estimate:
    """`P` of one evaluation, above 1 is worse; its bounds are those of the ratio, the reference as it was measured.

    Raises:
        ScoreError: there is no such evaluation, it has no metric, or its reference is at chance.
    """
    if evaluation is None:
        raise ScoreError(
            f"{name} is not evaluated here; add --llm-eval {shlex.quote(name)}, or name another measure"
        )
    if evaluation.reference is None or evaluation.candidate is None:
        raise ScoreError(f"{name} has figures and no metric; name another measure in --llm-quality")
    reference, ratio, title = evaluation.reference, evaluation.ratio, f"{name} {evaluation.metric}"
    low, high = ratio.low or 0.0, math.inf if ratio.high is None else ratio.high
    if not evaluation.higher_is_better:
        value = LowerIsBetter(evaluation.candidate, reference, title).worsening()
        return Estimate(value, low, high, evaluation.n, "measured", ratio.source)

    def of(candidate: float) -> float:  # a correlation below 0 is as worthless as one of 0
        chance = evaluation.chance or 0.0
        return HigherIsBetter(max(0.0, candidate), max(0.0, reference), chance, title).worsening()

    best = of(reference * high) if math.isfinite(high) else 0.0
    return Estimate(
        of(evaluation.candidate), best, of(reference * low), evaluation.n, "measured", ratio.source
    )


def parts_sentence(record: Record) -> str:
    """The score with its parts, e.g. `opt 1.02 = Q 1.05 (perplexity 1.03, arc_challenge 1.07) x (1 T 0.97)`."""
    if record.opt.value is None:
        return f"opt is {record.opt.method}: {record.opt.reason}"
    names = [PERPLEXITY] if record.quality is None else record.quality.source.split(_AND)
    named = {each.name: each for each in record.evaluations}
    parts = {
        name: record.perplexity if name == PERPLEXITY else worsening_of(name, named[name]) for name in names
    }
    each = ", ".join(f"{name} {units.significant(part.value)}" for name, part in parts.items())
    costs = [("T", record.time, record.profile.alpha), ("E", record.energy, record.profile.beta)]
    cost = " + ".join(
        f"{weight:g} {name} {MARK.get(part.method, '')}{units.significant(part.value)}"
        for name, part, weight in costs
        if weight > 0
    )
    q = units.significant(_power(record.worsening.value or 0.0))
    return f"opt {MARK.get(record.opt.method, '')}{units.significant(record.opt.value)} = Q {q} ({each}) x ({cost})"


def parse_profile(text: str, name: str = "the profile") -> Profile:
    """The profile of a name, `balanced`, `energy` or `runtime`, or of two weights, `0.3:0.7` (time:energy).

    Raises:
        SettingError: an unknown name, or weights that are not two numbers from 0 on with a sum of 1.
    """
    text = text.strip()
    if text in PROFILES:
        return PROFILES[text]
    rule = f"{name} is one of {', '.join(PROFILES)}, or the weights of time and energy like 0.3:0.7"
    try:
        alpha, beta = (float(weight) for weight in text.split(":"))
    except ValueError:
        raise SettingError(f"{rule}, got {text!r}") from None
    if not (alpha >= 0 and beta >= 0 and math.isclose(alpha + beta, 1, rel_tol=0, abs_tol=1e-9)):
        raise SettingError(
            f"{rule}, both from 0 on and with a sum of 1, got {text!r} with a sum of {alpha + beta:g}"
        )
    same = (p for p in PROFILES.values() if (p.alpha, p.beta) == (alpha, beta))
    return next(same, Profile(f"{alpha:g}:{beta:g}", alpha, beta))


def _together(parts: dict[str, Estimate]) -> Estimate:
    """The mean of the powers, brought back to the scale of one part."""
    worst = min(parts.values(), key=lambda part: _METHODS.index(_method(part)))
    source = _AND.join(parts)
    if not worst.known:
        return no_estimate(worst.reason, method=_method(worst), source=source)

    def mean(bounds: Iterable[float]) -> float:
        total = math.fsum(_power(bound) for bound in bounds)
        return float((total / len(parts)) ** (1 / _EXPONENT))

    value = mean(part.value or 0.0 for part in parts.values())
    low = mean(part.low or 0.0 for part in parts.values())
    high = mean(math.inf if part.high is None else part.high for part in parts.values())
    return Estimate(value, low, high, min(part.n for part in parts.values()), worst.method, source)


def _method(part: Estimate) -> Method:
    """How a part was obtained; what has no value is at best unmeasured."""
    return part.method if part.known or part.method == "simulated" else "unmeasured"


def _bound(ratios: Sequence[float], profile: Profile) -> float:
    worsening, time, energy = ratios
    cost = math.fsum(w * r for w, r in ((profile.alpha, time), (profile.beta, energy)) if w > 0)
    return _power(worsening) * cost if worsening and cost else 0.0


def _power(worsening: float) -> float:
    try:
        return float(worsening**_EXPONENT)
    except OverflowError:
        return math.inf


def _positive(name: str, value: float | None) -> float:
    if value is None or not math.isfinite(value):
        raise ScoreError(f"{name} is a finite number above 0, got {value}")
    return _above_0(name, value)


def _above_0(name: str, value: float) -> float:
    if not value > 0:
        raise ScoreError(f"{name} is a finite number above 0, got {value:g}")
    return value


def _at_least_0(name: str, value: float | None) -> float:
    if value is None or not math.isfinite(value) or value < 0:
        raise ScoreError(f"{name} is a finite number from 0 on, got {value}")
    return value

"""What a run knows, as frozen records that go to and from plain builtins.

Records cross process borders (xdist), land in JSON and are compared with stored ones, so every number
carries how it came to be. A number that could not be had is `None` with a reason, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pytest_llmslim.evaluation_records import Evaluation, Figure, Flips, Question
from pytest_llmslim.readings import Estimate, Method, Reading, no_estimate, unmeasured

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "SCHEMA",
    "WORST_FIRST",
    "Accepted",
    "Against",
    "Axis",
    "Build",
    "Carbon",
    "Divergence",
    "Estimate",
    "Evaluation",
    "Figure",
    "Flips",
    "Integrity",
    "Key",
    "Metering",
    "Method",
    "Outcome",
    "Profile",
    "Protocol",
    "Question",
    "Reading",
    "Record",
    "Samples",
    "Sampling",
    "Side",
    "Verdict",
    "no_estimate",
    "unmeasured",
    "worst",
]

SCHEMA = 2

Outcome = Literal["passed", "failed", "inconclusive", "not comparable", "new"]

Axis = Literal["integrity", "perplexity", "time", "wall", "energy", "opt", "evaluation"]

Against = Literal["threshold", "baseline", "anchor", "integrity"]
"""What a verdict compares with. The anchor is the first accepted baseline, which updates leave as it is."""

WORST_FIRST: tuple[Outcome, ...] = ("failed", "inconclusive", "not comparable", "new", "passed")


@dataclass(frozen=True, slots=True)
class Key:
    """What a record is about; the key of a baseline. Built from fields, never from a node id."""

    suite: str
    test: str
    model: str
    recipe: str


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a quality number was computed; numbers under different protocols are never compared.

    Args:
        name: `window` (disjoint windows) or `stride` (overlapping, only new tokens scored).
        window: tokens in one forward pass, BOS included.
        stride: tokens between the starts of windows; equals the fresh tokens of a window.
        bos: whether every window starts with the BOS token.
        tokens: tokens that were scored.
        windows: forward passes a model.
        text: name of the text (a file name or `embedded`).
        text_sha256: of the bytes read.
        dtype: in which the reference ran.
    """

    name: str
    window: int
    stride: int
    bos: bool
    tokens: int
    windows: int
    text: str
    text_sha256: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Side:
    """One model as it was measured. `None`: not available, e.g. perplexity of a classifier, words without offsets."""

    parameters: int
    stored_bytes: int
    weights_hash: str
    perplexity: float | None
    word_perplexity: float | None
    byte_perplexity: float | None
    time_s: Reading
    wall_s: Reading
    energy_j: Reading
    peak_memory: Reading


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far the candidate's next-token distributions are from the reference's, over all scored tokens.

    `mean_kl` is KL(reference || candidate) in nats a token, `low` and `high` its 95 % interval over windows of
    text (`None`: one window); `top1` the share of tokens with the same likeliest token. `median_kl` and `kl_999`
    are quantiles over tokens, 0.5 and 0.999; `rms_dp` the root of the mean squared change of the probability of the
    token that really comes next. `None`: stored before they were measured.
    """

    mean_kl: float
    top1: float
    low: float | None = None
    high: float | None = None
    median_kl: float | None = None
    kl_999: float | None = None
    rms_dp: float | None = None


@dataclass(frozen=True, slots=True)
class Build:
    """What compressing cost, and what it did, one sentence a step."""

    time_s: Reading
    energy_j: Reading
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Integrity:
    """Whether something was compressed at all, and whether the saving is real.

    `compressed`: stored bytes or shapes fell, or kernels were replaced. `simulated`: weights were rounded or
    masked but are stored and multiplied in full. `control`: the identity recipe, for A/A runs.
    `changed`: other weights of the same size. `nothing`: equal to the reference.

    `kernels`: whether the candidate multiplies as its reference does (`same`: modules with weights are of the
    same classes and dtypes). `other` kernels may slow down otherwise beside other load.
    """

    status: Literal["compressed", "simulated", "changed", "control", "nothing"]
    sentence: str
    kernels: Literal["same", "other"] = "other"


@dataclass(frozen=True, slots=True)
class Profile:
    """Weights of time (alpha) and energy (beta) in `opt`."""

    name: str
    alpha: float
    beta: float


@dataclass(frozen=True, slots=True)
class Samples:
    """What the estimates rest on: log(candidate / reference), one value a block (time) or window (quality).

    `nll_difference` and `kl` are in nats a token, one mean a window; `window_tokens` the tokens scored in each.
    Windows are in the order of the text, since neighbours may depend on each other. `kl_by_position` is the mean KL
    of the tokens in each of up to 16 equal parts of a window, from its start to its end.
    """

    time: tuple[float, ...] = ()
    wall: tuple[float, ...] = ()
    energy: tuple[float, ...] = ()
    nll_difference: tuple[float, ...] = ()
    window_tokens: tuple[int, ...] = ()
    kl: tuple[float, ...] = ()
    kl_by_position: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the paired values of time came to be, and what the decisions on them may spend.

    Args:
        per_block: pairs in a block; 0 when nothing was timed.
        looks: numbers of blocks at which a decision was tried, in order.
        planned: looks over which the error is split; `looks` may be fewer, since a decision ends them.
        level: chance of a false `failed` that each noisy gate of this record could spend at each look.
        replaced: pairs that were disturbed from outside and measured again.
        disturbed: pairs that were disturbed and kept, since as many had been replaced as a block allows.
        disturbances: what was seen, as words with counts, e.g. `steal time 3`.
        movable: whether the models were moved to new memory before each block.
        wall_over_cpu: median wall / process CPU time of the reference; `None` where that says nothing (a GPU).
    """

    per_block: int = 0
    looks: tuple[int, ...] = ()
    planned: int = 1
    level: float = 0.01
    replaced: int = 0
    disturbed: int = 0
    disturbances: tuple[str, ...] = ()
    movable: bool = True
    wall_over_cpu: float | None = None


_GROSS = unmeasured("W", "none", "idle power is not subtracted")


@dataclass(frozen=True, slots=True)
class Metering:
    """What belongs to the energy readings of a record besides their source.

    Args:
        policy: `gross`: all that the source counts; `net`: less the idle power, measured before.
        idle_w: that idle power in W; `unmeasured` under `gross`.
        second_source: another source that was read over the same windows; empty: there was none.
        second_ratio: median of second / first source over the windows; `None` without a second.
    """

    policy: Literal["gross", "net"] = "gross"
    idle_w: Reading = _GROSS
    second_source: str = ""
    second_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Carbon:
    """Grams of CO2 equivalent a kWh of a country's electricity, from a table: always an estimate."""

    country: str
    g_per_kwh: float
    source: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One decision of the gate on one axis, with its sentence (subject, rule, got, next step).

    `more`: it is inconclusive, and more blocks of the same measurement may decide it. `evaluation`: which one, on
    that axis.
    """

    axis: Axis
    outcome: Outcome
    sentence: str
    against: Against = "threshold"
    more: bool = False
    evaluation: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Why a record became a baseline: the reason given, the commit it was measured at, its run, and when (UTC)."""

    reason: str
    commit: str
    run: str
    when: str


@dataclass(frozen=True, slots=True)
class Record:
    """Everything one measurement of one candidate against its reference gave.

    `quality`: how much worse the candidate is, over all measures that `opt` rests on (see `score.combined`); `None`:
    perplexity is the only one. `accepted`: of a baseline that `llmslim accept` wrote.
    """

    key: Key
    label: str
    protocol: Protocol
    reference: Side
    candidate: Side
    perplexity: Estimate
    divergence: Divergence | None
    time: Estimate
    wall: Estimate
    energy: Estimate
    stored_bytes: Estimate
    floor: float | None
    build: Build
    integrity: Integrity
    profile: Profile
    opt: Estimate
    fingerprint: dict[str, str]
    samples: Samples
    sampling: Sampling = Sampling()
    metering: Metering = Metering()
    carbon: Carbon | None = None
    notes: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = field(default=())
    evaluations: tuple[Evaluation, ...] = ()
    quality: Estimate | None = None
    accepted: Accepted | None = None

    @property
    def worsening(self) -> Estimate:
        """The quality that `opt` rests on: `opt = worsening ** 1.5 * cost`."""
        return self.perplexity if self.quality is None else self.quality

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of all verdicts; a record without verdicts passed."""
        return worst(self.verdicts)


def worst(verdicts: Iterable[Verdict]) -> Outcome:
    """The worst outcome of some verdicts; of none, `passed`."""
    outcomes = {verdict.outcome for verdict in verdicts}
    return next((outcome for outcome in WORST_FIRST if outcome in outcomes), "passed")

"""The object behind the fixture `llm`: one candidate of one model, measured against its reference."""

from __future__ import annotations

import math
import statistics
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from pytest_llmslim import gate
from pytest_llmslim.candidates import name_of
from pytest_llmslim.conditions import BUSY_BASELINE, busier
from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.evals.perplexity import perplexity
from pytest_llmslim.measure import Duet, Measured, Plan, Tally
from pytest_llmslim.models.storage import parameter_count, stored_bytes
from pytest_llmslim.pairs import NO_PERPLEXITY
from pytest_llmslim.records import (
    Divergence,
    Estimate,
    Evaluation,
    Key,
    Reading,
    Record,
    Samples,
    Side,
    no_estimate,
    unmeasured,
)
from pytest_llmslim.score import combined, opt_estimate
from pytest_llmslim.statistics import block_estimate, mean_interval, window_estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from pytest_llmslim.candidates import Candidate, Compress
    from pytest_llmslim.collection import Case
    from pytest_llmslim.evals.text import Passage
    from pytest_llmslim.models.loading import LoadedModel
    from pytest_llmslim.session import Session


class Bench:
    """Measures candidates of one test. Attributes load what they name when first read.

    Args:
        session: the run.
        case: model and recipe of this test.
        suite: name of the test's module, and `test` of the test: the key of a baseline.
        thresholds: what this test will not ship.
        show: called with the first record and the candidate's seconds a timed forward pass.
        earlier: asked with key, model and device for what the run that goes on has measured already.
    """

    def __init__(
        self,
        session: Session,
        case: Case,
        suite: str,
        test: str,
        thresholds: gate.Thresholds,
        show: Callable[[Record, list[float]], None] | None = None,
        earlier: Callable[[Key, str, str], Record | None] | None = None,
    ) -> None:
        self._session, self._case = session, case
        self._suite, self._test, self._thresholds, self._show = suite, test, thresholds, show
        self._earlier = earlier
        self.records: list[Record] = []
        self.taken: list[Record] = []

    @property
    def reference(self) -> LoadedModel:
        """The original model with its tokenizer."""
        return self._session.reference(self._case.model)

    @property
    def candidate(self) -> Candidate:
        """The model compressed by the test's recipe."""
        return self._session.candidate(self._case)

    @property
    def text(self) -> Passage:
        """The windows of tokens on which both are run."""
        return self._session.passage(self._case.model)

    def measure(
        self,
        candidate: torch.nn.Module | Compress | str | Path | None = None,
        *,
        label: str | None = None,
        rounds: int | None = None,
    ) -> Record:
        """Measure a candidate against the reference, score it, and compare it with thresholds and baseline.

        The test fails after its body when a verdict is `failed`; the record returned already holds the verdicts.

        Args:
            candidate: nothing for the test's recipe; a function of a private copy of the reference that returns
                the compressed module (or changes its argument); a module; or a checkpoint folder.
            label: name in tables and baselines; needed for a second measurement in one test.
            rounds: exactly so many pairs where `--llm-rounds` does not say how many.

        Raises:
            SlimError: the candidate cannot be made or measured, with the reason.
        """
        key = self._key(candidate, label)
        if any(record.key == key for record in self.records):
            raise MeasurementError(
                f"{key.recipe} was measured twice in {self._test}; give the second one another label=."
            )
        if self._earlier and (record := self._earlier(key, self._case.model, self._session.device)):
            self._close(record)
            self.records.append(record)
            self.taken.append(record)
            return record
        made = (
            self._session.candidate(self._case)
            if candidate is None
            else self._session.bring(self._case, candidate, label)
        )
        subject = f"{key.recipe} on {self._case.label}"
        level = self._session.level(key, self._thresholds, again=bool(self.records))
        evaluations = self._session.examiner.examine(
            self._case, made, subject
        )  # before, since opt may rest on them

        def judged(measured: Measured, untimed: str = "") -> Record:
            return self._judged(self._record(made, measured, evaluations, key, subject, untimed), level)

        measured, untimed = self._run(
            made, subject, rounds, lambda measured: self._undecided(judged(measured))
        )
        self._session.check_reference(self._case.model, subject)
        record = _settled(judged(measured, untimed))
        self._close(record)
        self.records.append(record)
        if self._show and len(self.records) == 1 and measured.candidate.wall_ns:
            self._show(record, [ns / 1e9 for ns in measured.candidate.wall_ns])
        return record

    def _key(self, candidate: torch.nn.Module | Compress | str | Path | None, label: str | None) -> Key:
        recipe = self._case.recipe.text if self._case.recipe else ""
        name = label or (recipe if candidate is None else name_of(candidate))
        return Key(self._suite, self._test, self._case.label, name)

    def _run(
        self,
        made: Candidate,
        subject: str,
        rounds: int | None,
        undecided: Callable[[Measured], Collection[str]],
    ) -> tuple[Measured, str]:
        """What was measured, and why cost was not; empty where it was, or is not the method's own."""
        session, settings = self._session, self._session.settings
        timed = made.integrity.status != "simulated"
        exactly = rounds if settings.rounds is None else settings.rounds
        plan = Plan(exactly, settings.seed, session.device, settings.max_rounds, timed)
        progress = session.progress(subject) if session.progress else None
        session.tell(subject, "measuring")
        reference, text = self.reference.module, self.text
        torch.set_num_threads(settings.threads)  # a candidate's code may have changed it
        duet = Duet(reference, made.module, text, plan, session.meter, subject, progress)
        if timed and session.workers > 1:
            duet.score_ahead()
        with session.alone() if timed else nullcontext("") as untimed:
            duet.plan = replace(plan, timed=timed and not untimed)
            return duet.run(undecided), untimed

    def _undecided(self, record: Record) -> frozenset[str]:
        """The axes that need more blocks: of undecided gates, or for a baseline that is worth storing."""
        # What is red already stays red, whatever else would come out.
        axes = frozenset() if record.outcome == "failed" else gate.undecided_axes(record.verdicts)
        if not self._session.settings.update:
            return axes
        stored = ("time", "energy") if self._session.energy_gated else ("time",)
        limit = self._session.settings.regression
        return axes | {axis for axis in stored if _coarse(getattr(record, axis), limit)}

    def _judged(self, record: Record, level: float) -> Record:
        session, settings = self._session, self._session.settings
        alpha = level / record.sampling.planned
        # A run that writes the baseline is not judged by the old one, and a part of a recipe has none.
        alone = settings.update or self._case.part
        stored = None if alone else session.store.get(record.key)
        missed = settings.require_baseline or (settings.strict and session.store.knows(record.key.model))
        verdicts = gate.decide(
            record,
            self._thresholds,
            stored,
            anchor=None if alone else session.store.anchor(record.key),
            gate_estimated=settings.gate_estimated,
            require_baseline=missed and not alone,
            alpha=alpha,
            limits=settings.limits(),
        )
        notes = record.notes
        if alone:
            verdicts = tuple(verdict for verdict in verdicts if verdict.outcome != "new")
        if settings.update:
            notes = (*notes, *([BUSY_BASELINE] if busier(record, None) else []))
        sampling = replace(record.sampling, level=alpha)
        return replace(record, verdicts=verdicts, sampling=sampling, notes=notes)

    def _close(self, record: Record) -> None:
        """Tell the family of gates how this record's noisy ones ended."""
        outcomes = [verdict.outcome for verdict in record.verdicts if verdict.axis in gate.NOISY]
        self._session.close_gates(
            decided=sum(outcome != "not comparable" for outcome in outcomes),
            failed=outcomes.count("failed"),
            again=bool(self.records),
        )

    def _record(
        self,
        made: Candidate,
        measured: Measured,
        evaluations: tuple[Evaluation, ...],
        key: Key,
        subject: str,
        untimed: str,
    ) -> Record:
        session, passage = self._session, self.text
        reference_hash = session.reference_hash(self._case.model)
        reference = _side(self.reference.module, reference_hash, measured.reference, passage, measured)
        candidate = _side(made.module, made.weights_hash, measured.candidate, passage, measured)
        ratio = _perplexity_ratio(measured)
        quality = combined(ratio, evaluations, session.settings.quality)
        costs = _costs(measured, reference, candidate, made, untimed)
        return Record(
            key=key,
            label=subject,
            protocol=passage.protocol,
            reference=reference,
            candidate=candidate,
            perplexity=ratio,
            divergence=_divergence(measured),
            time=costs.time,
            wall=costs.wall,
            energy=costs.energy,
            stored_bytes=costs.stored_bytes,
            floor=passage.floor if ratio.known else None,
            build=made.build,
            integrity=made.integrity,
            profile=session.settings.profile,
            opt=opt_estimate(quality.worsening or ratio, costs.time, costs.energy, session.settings.profile),
            fingerprint=session.fingerprint(),
            samples=_samples(measured, costs),
            sampling=measured.sampling,
            metering=session.meter.metering(),
            carbon=session.carbon,
            notes=(*passage.notes, *measured.notes, *quality.notes),
            evaluations=quality.marked(evaluations),
            quality=quality.worsening,
        )


def _settled(record: Record) -> Record:
    """Without the gates that were still open when a failed one ended the measurement: they were not pursued."""
    if record.outcome != "failed" or len(record.sampling.looks) >= record.sampling.planned:
        return record
    return replace(record, verdicts=tuple(verdict for verdict in record.verdicts if not verdict.more))


def _side(module: torch.nn.Module, digest: str, tally: Tally, passage: Passage, measured: Measured) -> Side:
    times = tally.device_ns if measured.clock == "cuda events" else tally.cpu_ns
    good = [reading for reading in tally.energy if reading.value is not None]
    counts = (passage.protocol.tokens, passage.words, passage.scored_bytes)
    # A classifier scores no token.
    each = [perplexity(tally.nll, count) if count and measured.window_tokens else None for count in counts]
    return Side(
        parameters=parameter_count(module),
        stored_bytes=stored_bytes(module),
        weights_hash=digest,
        perplexity=each[0],
        word_perplexity=each[1],
        byte_perplexity=each[2],
        time_s=_seconds(times, measured.clock),
        wall_s=_seconds(tally.wall_ns, "perf_counter"),
        energy_j=_middle(good) if good else (tally.energy or [unmeasured("J", "none", "no energy meter")])[0],
        peak_memory=tally.peak_memory,
    )


def _seconds(nanoseconds: list[int], source: str) -> Reading:
    """Median seconds of a forward pass."""
    if not nanoseconds:
        return unmeasured("s", source, "only quality was measured")
    return Reading(max(_median(nanoseconds), 1) / 1e9, "s", source, "measured", 1e-9)


def _middle(readings: list[Reading]) -> Reading:
    """Median joules of a forward pass."""
    first = readings[0]
    middle = _median([reading.value for reading in readings if reading.value is not None])
    return Reading(middle, first.unit, first.source, first.method, first.resolution)


def _perplexity_ratio(measured: Measured) -> Estimate:
    if not measured.window_tokens:
        return no_estimate(NO_PERPLEXITY)
    return window_estimate(measured.nll_difference, measured.window_tokens)


def _divergence(measured: Measured) -> Divergence | None:
    if measured.top1 is None:
        return None
    low, high = (None, None)
    if len(measured.kl) > 1:
        _, low, high, _ = mean_interval(measured.kl, measured.window_tokens, least=0.0)
    quantiles = (measured.median_kl, measured.kl_999)
    return Divergence(measured.mean_kl, measured.top1, low, high, *quantiles, measured.rms_dp)


def _coarse(estimate: Estimate, limit: float) -> bool:
    """Whether an interval is too wide to be compared with, since it widens what a later run may lose.

    Its half is then more than half of a regression's size.
    """
    if not estimate.low or estimate.high is None:
        return estimate.known
    return math.log(estimate.high / estimate.low) / 2 > math.log1p(limit) / 2


def _median(values: list[int] | list[float]) -> float:
    return float(statistics.median(values))


class Costs(NamedTuple):
    """Candidate / reference."""

    time: Estimate
    wall: Estimate
    energy: Estimate
    stored_bytes: Estimate


def _costs(measured: Measured, reference: Side, candidate: Side, made: Candidate, untimed: str) -> Costs:
    """The ratios of cost; absent where they would not be the method's own, or for the reason `untimed`."""
    ratio = candidate.stored_bytes / reference.stored_bytes
    size = Estimate(ratio, ratio, ratio, 1, "measured", "storage")
    if made.integrity.status == "simulated":
        none = no_estimate(made.integrity.sentence, method="simulated")
        # what is stored is real even where no kernel works on it
        return Costs(none, none, none, size if ratio < 1 else none)
    if untimed:
        none = no_estimate(untimed)
        return Costs(none, none, none, size)
    time = block_estimate(measured.time, "measured", measured.clock)
    wall = block_estimate(measured.wall, "measured", "perf_counter")
    if not measured.energy:
        return Costs(time, wall, no_estimate(measured.energy_reason), size)
    energy = block_estimate(measured.energy, measured.energy_method, reference.energy_j.source)
    return Costs(time, wall, energy, size)


def _samples(measured: Measured, costs: Costs) -> Samples:
    """The paired values of what has an estimate."""
    return Samples(
        measured.time if costs.time.known else (),
        measured.wall if costs.wall.known else (),
        measured.energy if costs.energy.known else (),
        measured.nll_difference,
        measured.window_tokens,
        measured.kl,
        measured.kl_by_position,
    )

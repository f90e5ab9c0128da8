"""The state of a run: the loaded reference, its text, the energy meter and the stored baselines.

One reference and one candidate are held at a time; tests are sorted so that each is made once.
"""

from __future__ import annotations

import contextlib
import gc
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from pytest_llmslim import __version__, gate
from pytest_llmslim.baselines import Store
from pytest_llmslim.candidates import Candidate, Compress, Workshop
from pytest_llmslim.collection import model_label
from pytest_llmslim.embedded.grammar import DOCUMENT_TOKENS
from pytest_llmslim.errors import CompressionError, ModelError, SettingError
from pytest_llmslim.evals import text as texts
from pytest_llmslim.examining import Examiner
from pytest_llmslim.fingerprint import library_versions, machine_fingerprint
from pytest_llmslim.meters.intensity import intensity
from pytest_llmslim.meters.ladder import choose_energy_meter
from pytest_llmslim.meters.net import subtract_idle
from pytest_llmslim.meters.null import NullMeter
from pytest_llmslim.methods import Context
from pytest_llmslim.models.loading import LoadedModel, load_model
from pytest_llmslim.models.saving import folder_name, save
from pytest_llmslim.models.storage import weights_hash
from pytest_llmslim.recipe import instantiate
from pytest_llmslim.sequential import ALPHA, RESERVE, Family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pytest_llmslim.collection import Case
    from pytest_llmslim.evals.text import Passage
    from pytest_llmslim.lease import Lease
    from pytest_llmslim.meters import Meter
    from pytest_llmslim.pace import Line
    from pytest_llmslim.records import Carbon, Key
    from pytest_llmslim.settings import Settings

WINDOW, TOKENS = 512, 8192
ALIGNED_WINDOW = DOCUMENT_TOKENS + 1
"""BOS and one document of the embedded language: only then is the grammar's probability of a window exact."""
GRAMMAR_TOKENS = 32 * DOCUMENT_TOKENS
SHARED = (
    "cost is not measured while {} workers share the machine and nothing keeps them apart; run without -n"
)
BUILT_BESIDE = "it was built beside other workers; run without -n"
CHECKPOINTS = "checkpoints"
"""In the folder of the results: what lets an interrupted training go on."""


class Session:
    """Everything that tests of one run share.

    Args:
        settings: of the run.
        workers: processes that share the machine.
        foreseen: key and thresholds of every test that will run; the key's recipe is empty where a test brings
            its own candidate. Their noisy gates share one error.
        lease: lets one of several workers measure while the others rest; `None`: they cannot be kept apart.
    """

    def __init__(
        self,
        settings: Settings,
        workers: int = 1,
        foreseen: Sequence[tuple[Key, gate.Thresholds]] = (),
        lease: Lease | None = None,
    ) -> None:
        self.settings = settings
        self.workers = workers
        self._lease = lease
        self._foreseen = foreseen
        self._family: Family | None = None
        self._unforeseen: Family | None = None
        self._carbon: Carbon | None = None
        self._fingerprint: dict[str, str] | None = None
        self.device = _device(settings.device)
        self.store = Store(settings.baseline)
        self.examiner = Examiner(self)
        self.progress: Callable[[str], Line] | None = None
        self._reference: LoadedModel | None = None
        self._reference_hash = ""
        self._candidate: tuple[str, str, Candidate] | None = None
        self._bench: Workshop | None = None
        self._passage: tuple[str, Passage] | None = None
        self._meter: Meter | None = None

    @property
    def meter(self) -> Meter:
        """The best energy meter of this machine; opened at the first measurement."""
        if self._meter is None:
            self._meter = self._open_meter()
        return self._meter

    def _open_meter(self) -> Meter:
        with self.alone() as reason:  # it looks how the machine's sources behave
            meter = NullMeter(reason) if reason else choose_energy_meter(self.device)
        return subtract_idle(meter) if self.settings.energy == "net" else meter

    @contextlib.contextmanager
    def alone(self) -> Iterator[str]:
        """Nothing else of this run works on the device during the body, which may wait for that.

        Yields:
            Why cost cannot be measured now, as a sentence; empty where it can.
        """
        if self.workers == 1:
            yield ""
        elif self._lease is None:
            yield SHARED.format(self.workers)
        else:
            with self._lease.exclusive() as reason:
                yield reason

    @property
    def carbon(self) -> Carbon | None:
        """Grams of CO2 a kWh of the country asked for; `None` where none was."""
        if self._carbon is None and self.settings.country is not None:
            self._carbon = intensity(self.settings.country)
        return self._carbon

    @property
    def energy_gated(self) -> bool:
        """Whether energy is held against limits and baselines in this run."""
        return self.meter.method in ("measured", "sampled") or (
            self.settings.gate_estimated and self.meter.method == "estimated"
        )

    @property
    def family(self) -> Family:
        """The noisy gates of this run, which share one error."""
        if self._family is None:
            self._family = Family(sum(self._gates(key, thresholds) for key, thresholds in self._foreseen))
        return self._family

    def level(self, key: Key, thresholds: gate.Thresholds, *, again: bool = False) -> float:
        """What each noisy gate of a measurement may spend over all its looks.

        Args:
            key: of the measurement.
            thresholds: of its test.
            again: it is a further one of its test, which collection could not foresee.
        """
        return self._family_of(again=again).level(self._gates(key, thresholds))

    def close_gates(self, *, decided: int, failed: int, again: bool = False) -> None:
        """Take note of the gates of a measurement, `again` as for `level`."""
        self._family_of(again=again).close(decided=decided, failed=failed)

    def _family_of(self, *, again: bool) -> Family:
        """Of several workers each knows its own gates only: those that were not foreseen share the reserve evenly."""
        if not again or self.workers == 1:
            return self.family
        if self._unforeseen is None:
            self._unforeseen = Family(0, ALPHA * RESERVE / self.workers)
        return self._unforeseen

    def _gates(self, key: Key, thresholds: gate.Thresholds) -> int:
        energy = self.energy_gated
        opt = energy or self.settings.profile.beta == 0
        return gate.noisy_gates(thresholds, self._stored(key), energy=energy, opt=opt)

    def _stored(self, key: Key) -> int:
        """With how many stored records a test is compared; at most two."""
        if self.settings.update:
            return 0
        if not key.recipe:  # a candidate whose label is not known yet
            return 2 * self.store.knows(key.model)
        return (self.store.get(key) is not None) + (self.store.anchor(key) is not None)

    def fingerprint(self) -> dict[str, str]:
        """What makes timings of two machines comparable."""
        if self._fingerprint is None:  # asked for at every look; it reads files and opens NVML
            self._fingerprint = machine_fingerprint(
                device=self.device,
                threads=self.settings.threads,
                dtype=self.settings.dtype,
                energy_source=self.meter.source,
            )
        return self._fingerprint

    def reference(self, model: str) -> LoadedModel:
        """The original model; the one before it is let go first."""
        if self._reference is None or self._reference.name != model:
            self._let_all_go()
            torch.set_num_threads(self.settings.threads)
            self.tell(model_label(model), "loading")
            self._reference = load_model(
                model,
                device=self.device,
                dtype=self.settings.dtype,
                trust_remote_code=self.settings.trust_remote_code,
            )
            self._reference_hash = weights_hash(self._reference.module)
        return self._reference

    def reference_hash(self, model: str) -> str:
        """sha256 of the reference's weights."""
        self.reference(model)
        return self._reference_hash

    def check_reference(self, model: str, subject: str) -> None:
        """Look whether the reference still has the weights with which it was loaded.

        Raises:
            CompressionError: it has not; it is loaded anew for the next test.
        """
        if self._reference is None or weights_hash(self._reference.module) == self._reference_hash:
            return
        self.discard()
        raise CompressionError(
            f"{subject}: the reference's weights changed while the candidate was made or run, so nothing here can be "
            f"compared; compress a copy (copy.deepcopy), or give llm.measure() a function, which gets one. "
            f"{model_label(model)} is loaded anew for the next test."
        )

    def discard(self) -> None:
        """Let all models go, for a state that cannot be trusted; the next test loads them anew."""
        self._let_all_go()

    def passage(self, model: str) -> Passage:
        """The text for this model, cut by its tokenizer."""
        if self._passage is None or self._passage[0] != model:
            self._passage = (model, self._cut(self.reference(model)))
        return self._passage[1]

    def _cut(self, reference: LoadedModel) -> Passage:
        settings = self.settings
        own_text = reference.source == "embedded" and settings.text is None
        longest = getattr(reference.module.config, "max_position_embeddings", None)
        tokens = settings.tokens or (GRAMMAR_TOKENS if own_text else TOKENS)
        window = settings.window or (ALIGNED_WINDOW if own_text else min(WINDOW, longest or WINDOW))
        passage_of = partial(
            texts.cut,
            tokenizer=reference.tokenizer,
            tokens=tokens,
            window=window,
            stride=settings.stride,
            bos=settings.bos,
            dtype=settings.dtype,
            longest=longest,
        )
        if settings.text is not None:
            return passage_of(texts.read_text(settings.text))
        if not own_text:
            return passage_of(texts.reference_manual())
        source = texts.grammar_text(-(-tokens // DOCUMENT_TOKENS) + 1)
        passage = passage_of(source)
        aligned = window == ALIGNED_WINDOW and passage.protocol.bos and passage.protocol.name == "window"
        return texts.with_floor(passage, source) if aligned else passage

    # Candidates -------------------------------------------------------------------------------------------

    def candidate(self, case: Case) -> Candidate:
        """The candidate that the case's recipe builds; saved where that was asked for.

        Raises:
            SlimError: it cannot be built, or not saved.
        """
        if case.recipe is None:
            raise SettingError(
                "llm.measure() needs a candidate: give the test a recipe, e.g. "
                '@pytest.mark.llm(recipe="int4"), or pass a function, a model or a folder.'
            )
        if self._candidate is None or self._candidate[:2] != (case.model, case.recipe.text):
            self._let_go()
            reference = self.reference(case.model)
            self.tell(f"{case.recipe.text} on {case.label}", "building")
            methods = [instantiate(step, case.registry) for step in case.recipe.steps]
            candidate = self._workshop(case.model).build(
                case.recipe, methods, reference.module, self._context(case)
            )
            if self.settings.save is not None and not (case.part or case.recipe.control):
                candidate = self._saved(candidate, case, self.settings.save)
            self._candidate = (case.model, case.recipe.text, candidate)
        return self._candidate[2]

    def _saved(self, candidate: Candidate, case: Case, parent: Path) -> Candidate:
        """The candidate after it was saved; where to, and how the checkpoint differs, are among its sentences."""
        reference, passage = self.reference(case.model), self.passage(case.model)
        folder = parent / folder_name(case.label, candidate.name)
        card = {
            "model": case.model,
            "recipe": candidate.name,
            "steps": candidate.build.steps,
            "integrity": candidate.integrity.sentence,
            "seed": self.settings.seed,
            "dtype": reference.dtype,
            "text": {"name": passage.protocol.text, "sha256": passage.protocol.text_sha256},
            "weights_sha256": candidate.weights_hash,
            "reference_weights_sha256": self._reference_hash,
            "versions": {"pytest-llmslim": __version__, **library_versions()},
        }
        try:
            notes = save(candidate.module, reference.tokenizer, folder, card)
        except ModelError as error:
            raise ModelError(f"--llm-save of {candidate.name} on {case.label}: {error}") from None
        said = (*candidate.build.steps, f"saved in {folder}", *notes)
        return replace(candidate, build=replace(candidate.build, steps=said))

    def _workshop(self, model: str) -> Workshop:
        if self._bench is None or self._bench.model != model:
            beside = BUILT_BESIDE if self.workers > 1 else ""
            meter = NullMeter(beside) if beside else self.meter
            self._bench = Workshop(model, model_label(model), self.device, meter, beside)
        return self._bench

    def _context(self, case: Case) -> Context:
        reference, passage = self.reference(case.model), self.passage(case.model)
        return Context(
            passage.calibration,
            self.settings.seed,
            self.device,
            reference.family,
            case.label,
            reference.module,
            passage.rest,
            self._building(case),
            self.settings.results / CHECKPOINTS,
        )

    def _building(self, case: Case) -> Callable[[str], None] | None:
        """What shows the steps of building."""
        if self.progress is None or case.recipe is None:
            return None
        line = self.progress(f"{case.recipe.text} on {case.label}")
        return lambda what: line.say(f"building, {what}" if what else "")

    def tell(self, subject: str, what: str) -> None:
        """Show what is begun, where somebody watches."""
        if self.progress is not None:
            self.progress(subject).phase(what)

    def bring(
        self, case: Case, given: torch.nn.Module | Compress | str | Path, label: str | None
    ) -> Candidate:
        """A candidate that the user brings: a module, a function of a copy of the reference, or a folder.

        Raises:
            CompressionError: the function raised, or returned something that is no model.
            ModelError: the folder cannot be loaded.
            NothingCompressedError: it equals the reference.
        """
        self._let_go()
        reference = self.reference(case.model).module
        self.tell(f"{label or 'a candidate'} on {case.label}", "building")
        load = partial(
            load_model,
            device=self.device,
            dtype=self.settings.dtype,
            trust_remote_code=self.settings.trust_remote_code,
        )
        return self._workshop(case.model).take(given, label, reference, load)

    def _let_go(self) -> None:
        self._candidate = None
        self._free()

    def _let_all_go(self) -> None:
        self._reference = self._candidate = self._passage = self._bench = None
        self._free()

    def _free(self) -> None:
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Let models go and stop the meter."""
        if self._meter is not None:
            self._meter.close()
            self._meter = None
        self._let_all_go()


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SettingError(f"--llm-device {name} needs a CUDA device, and torch sees none; use cpu or auto.")
    return name

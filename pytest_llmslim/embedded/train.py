"""Train an embedded model of the made-up language, from nothing, on one CPU thread.

    python -m pytest_llmslim.embedded.train --model gpt2 --out DIR

Every step draws new documents, so that no text is seen twice. The loss is the cross entropy to the
grammar's own next-word distribution instead of to the one word drawn from it (soft targets): every
token teaches a whole row of the language. A checkpoint makes an interrupted run go on where it was.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from pytest_llmslim.embedded.answers import compression_answers, head_concentration, surprise
from pytest_llmslim.embedded.architectures import MAKERS, make_model, make_tokenizer
from pytest_llmslim.embedded.batches import BatchMaker, HeldOut, held_out
from pytest_llmslim.embedded.grammar import DOCUMENT_TOKENS, EVALUATION_SEED, TRAINING_SEED, Grammar
from pytest_llmslim.embedded.resting import restlessness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel


class Windows(NamedTuple):
    """What a step reads: so many windows of so many words, and the fastest attention for them."""

    windows: int
    words: int
    attention: str


STEPS, WARM_UP_STEPS = 2200, 100
PEAK_RATE = {"gpt2": 3e-3, "llama": 3e-3}
# Facts are learnt from the beginnings of documents, at half the cost a word; whole documents come in
# between once the facts are there, and alone at the end.
SHORT, LONG = Windows(32, 63, "eager"), Windows(8, DOCUMENT_TOKENS, "sdpa")
LONG_AT_REST = LONG._replace(attention="eager")
SHORT_SHARE, NO_LONG_REST_SHARE, LAST_LONG_SHARE = 0.4, 0.55, 0.15
REST_WEIGHT = 0.5
BETAS = (0.9, 0.98)
GRADIENT_NORM = 1.0
REPORT_STEPS = 100
HELD_OUT_WINDOWS = 48
CHECKPOINT = "checkpoint.safetensors"


class Training:
    """One run: model, optimiser, batches and how far it has come."""

    def __init__(self, name: str, steps: int, checkpoint: Path) -> None:
        self.steps, self.step = steps, 0
        self.model = make_model(name, len(Grammar().words), TRAINING_SEED)
        self._peak = PEAK_RATE[name]
        self._batches = BatchMaker(f"{TRAINING_SEED} {name}")
        self._optimizer = torch.optim.AdamW(self.model.parameters(), betas=BETAS, weight_decay=0.0)
        self._checkpoint = checkpoint
        if checkpoint.exists():
            self._resume()

    @property
    def shape(self) -> Windows:
        """What the next step reads."""
        done = self.step / self.steps
        is_short = done < SHORT_SHARE or (done < 1 - LAST_LONG_SHARE and self.step % 2 == 0)
        if is_short:
            return SHORT
        return LONG if done < NO_LONG_REST_SHARE else LONG_AT_REST

    def advance(self) -> float:
        """Do one step and return its loss on the text, nats a token."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak * learning_rate_share(self.step, self.steps)
        shape = self.shape
        self.model.set_attn_implementation(shape.attention)
        ids, targets = self._batches.batch(self.step, shape.windows, shape.words)
        rests = shape.attention == "eager"  # the only kind that tells its attention
        with torch.autocast("cpu", torch.bfloat16):
            output = self.model(ids[:, :-1], output_attentions=rests)
        text_loss = functional.cross_entropy(output.logits.float().flatten(0, 1), targets)
        loss = text_loss + REST_WEIGHT * restlessness(output.attentions) if rests else text_loss
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        self._optimizer.step()
        self.step += 1
        return text_loss.item()

    def save(self) -> None:
        """Write weights, optimiser moments and the step, replacing the last checkpoint in one move."""
        tensors = {"step": torch.tensor(self.step)}
        for index, parameter in enumerate(self.model.parameters()):
            state = self._optimizer.state[parameter]
            tensors[f"{index}.weight"] = parameter.data
            tensors |= {f"{index}.{key}": value for key, value in state.items()}
        written = self._checkpoint.with_suffix(".new")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, written)
        written.replace(self._checkpoint)

    def _resume(self) -> None:
        tensors = load_file(self._checkpoint)
        self.step = int(tensors["step"])
        for index, parameter in enumerate(self.model.parameters()):
            parameter.data.copy_(tensors[f"{index}.weight"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            self._optimizer.state[parameter] = {key: tensors[f"{index}.{key}"] for key in keys}


def learning_rate_share(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def train(name: str, folder: Path, steps: int) -> None:
    """Train a model, write it to a folder, and print how it answers to compression."""
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(name, steps, folder / CHECKPOINT)
    held = held_out(EVALUATION_SEED, HELD_OUT_WINDOWS)
    print(f"floor {math.exp(held.floor):.4f}", flush=True)
    began = time.perf_counter()
    while training.step < steps:
        loss = training.advance()
        if training.step % REPORT_STEPS == 0:
            over = over_floor(training.model, held.beginning(training.shape.words))
            spent = f"{time.perf_counter() - began:.0f} s"
            print(f"step {training.step}  loss {loss:.4f}  over floor {over:.4f}  {spent}", flush=True)
            training.save()
    write(training.model, folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    report(training.model, held)


def over_floor(model: PreTrainedModel, held: HeldOut) -> float:
    """Held-out perplexity divided by the grammar's own."""
    model.eval()
    result = math.exp(surprise(model, held.ids) - held.floor)
    model.train()
    return result


def write(model: PreTrainedModel, folder: Path) -> None:
    """Save weights as float16 with config and tokenizer."""
    model.half().save_pretrained(folder)
    make_tokenizer(Grammar().words).save_pretrained(folder)
    model.float()


def report(model: PreTrainedModel, held: HeldOut) -> None:
    """Print the answers to compression and the concentration of attention, as the docs show them."""
    model.eval()
    print(f"perplexity over floor {over_floor(model, held):.4f}")
    for answer in compression_answers(model.eval(), held.ids):
        print(f"{answer.compression:>20}  {answer.percent:+.2f} %")
    model.set_attn_implementation("eager")
    for layer, heads in enumerate(head_concentration(model, held.ids[:16])):
        print(f"layer {layer} attention on one position:", " ".join(f"{share:.2f}" for share in heads))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train an embedded model of the made-up language.")
    parser.add_argument("--model", choices=sorted(MAKERS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    train(options.model, options.out, options.steps)


if __name__ == "__main__":
    main()

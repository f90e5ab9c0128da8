"""What compressing a layer costs: GPTQ and SparseGPT of ours and of llmcompressor on equal work, and peak memory.

    python benchmarks/layer_seconds.py

compresses the same random Llama on the same calibration windows with each, on one thread, in turn, every time in a
process of its own after a warm-up on one layer. It prints the least CPU seconds and wall seconds a layer, and how far
the resident memory rose over the loaded model. CPU time holds on a busy machine, wall time does not.

    python benchmarks/layer_seconds.py --memory MODEL --text FILE

compresses MODEL as a run does, with the uncompressed one beside it, and prints by how much the resident memory rose
at most above the two of them; the goal is 1.5 GB.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.memory import PeakMemory
from pytest_llmslim.methods import Context
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.models.storage import copy_model, stored_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from pytest_llmslim.methods import Method

    Compress = Callable[[nn.Module, Any, torch.Tensor], object]
    """Compresses a model in place, given its tokenizer and windows [n, window]."""

OURS, THEIRS = "pytest-llmslim", "llmcompressor"
METHODS = ("gptq", "sparsegpt")
MISSING = (
    f"{THEIRS} is not installed, so ours stand alone; to compare: "
    "pip install --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0 loguru"
)
GOAL_GB = 1.5
VOCABULARY = 512


class Cost(NamedTuple):
    """Of compressing one model.

    Args:
        cpu: seconds of the process, all threads.
        wall: seconds.
        rise: bytes by which the resident memory rose at most.
    """

    cpu: float
    wall: float
    rise: float


def main() -> None:
    """Compare, or measure one model's memory, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3, help="of each; the least counts")
    parser.add_argument("--memory", metavar="MODEL", help="as --llm-model takes it")
    parser.add_argument("--text", type=Path, help="for calibration, with --memory")
    parser.add_argument("--method", choices=METHODS, default="gptq", help="with --memory")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.alone:
        print(memory_row(arguments))
    elif arguments.memory:
        print(fresh(*sys.argv[1:], "--alone"))
    elif arguments.one:
        print(json.dumps(one(arguments, *arguments.one)))
    else:
        compare(arguments)


def fresh(*options: str) -> str:
    """The last line that this file prints with `options` in a process of its own."""
    quiet_environment = {**os.environ, "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet_environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.strip().splitlines()[-1]


# Equal work -------------------------------------------------------------------------------------------------


def compare(arguments: argparse.Namespace) -> None:
    """All contenders in turn, round after round; a table of the least of each."""
    whose = [OURS, THEIRS] if importlib.util.find_spec(THEIRS) else [OURS]
    if len(whose) == 1:
        print(MISSING)
    contenders = [(method, owner) for method in METHODS for owner in whose]
    found: dict[tuple[str, str], list[Cost]] = {contender: [] for contender in contenders}
    for _ in range(arguments.runs):
        for contender in contenders:
            found[contender].append(Cost(*json.loads(fresh(*sys.argv[1:], "--one", *contender))))
    print(
        f"{arguments.layers} layers of {arguments.hidden}, {arguments.windows} windows of {arguments.window}, "
        f"the least of {arguments.runs} runs\n\n"
        "| method | by | CPU s a layer | wall s a layer | peak MB over the model |\n|---|---|---|---|---|"
    )
    for (method, owner), costs in found.items():
        cpu, wall, rise = (min(values) for values in zip(*costs, strict=True))
        each = f"{cpu / arguments.layers:.2f} | {wall / arguments.layers:.2f}"
        print(f"| {method} | {owner} | {each} | {rise / 1e6:.0f} |")


def one(arguments: argparse.Namespace, method: str, owner: str) -> Cost:
    """One contender on a fresh model, after the warm-up."""
    compress = (our if owner == OURS else their)(method)
    windows = torch.randint(
        4, VOCABULARY, (arguments.windows, arguments.window), generator=torch.Generator().manual_seed(0)
    )
    with tempfile.TemporaryDirectory() as folder:
        compress(*random_llama(1, arguments.hidden, folder), windows[:2])
        model, tokenizer = random_llama(arguments.layers, arguments.hidden, folder)
        with torch.no_grad():
            model(windows[:1])
        return cost(lambda: compress(model, tokenizer, windows))


def cost(work: Callable[[], object]) -> Cost:
    """Of doing `work` once."""
    memory = PeakMemory("cpu")
    gc.collect()
    if sys.platform == "linux":  # or what the warm-up freed would be used again, and hide a rise
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    memory.start()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    try:
        rise = float(memory.stop().value)
    except MeasurementError:  # it did not rise
        rise = 0.0
    return Cost(cpu, wall, rise)


def random_llama(layers: int, hidden: int, folder: str) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """A model with heads of 64, two to a key/value head, and a tokenizer, from `folder`, which llmcompressor reads."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    words = WordLevel({f"<{i}>": i for i in range(VOCABULARY)}, unk_token="<0>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="<3>")
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder)


def our(method: str) -> Compress:
    """By this package."""
    made = method_of(method)
    return lambda model, _, windows: made.compress(model, Context(windows, 0, "cpu", "llama", "random"))


def method_of(name: str) -> Method:
    """With 4 bits in groups of 128, or half of the weights zero; all windows of the context."""
    if name == "gptq":
        from pytest_llmslim.methods.gptq import GPTQ

        return GPTQ(bits=4, group=128)
    from pytest_llmslim.methods.sparsegpt import SparseGPT

    return SparseGPT(sparsity=0.5)


def their(method: str) -> Compress:
    """By llmcompressor, on the linears of the blocks too."""
    with quiet():
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
        from loguru import logger
    logger.remove()

    def compress(model: nn.Module, tokenizer: object, windows: torch.Tensor) -> None:
        modifier = (
            GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"], dampening_frac=0.01)
            if method == "gptq"
            else SparseGPTModifier(sparsity=0.5, targets=[r"re:model.layers.\d+$"], dampening_frac=0.01)
        )
        rows = {"input_ids": windows.tolist(), "attention_mask": torch.ones_like(windows).tolist()}
        oneshot(
            model=model,
            tokenizer=tokenizer,
            dataset=Dataset.from_dict(rows),
            recipe=[modifier],
            num_calibration_samples=len(windows),
            max_seq_length=windows.shape[1],
        )

    return compress


# Memory -----------------------------------------------------------------------------------------------------


def memory_row(arguments: argparse.Namespace) -> str:
    """Loads and copies the model as a run does, compresses the copy, and says what that needed."""
    reference = load_model(arguments.memory)
    windows = windows_of(arguments, reference.tokenizer)
    copy = copy_model(reference.module)
    weights = stored_bytes(copy)
    context = Context(windows, 0, "cpu", reference.family, arguments.memory, reference.module)
    applied = []
    spent = cost(lambda: applied.append(method_of(arguments.method).compress(copy, context)))
    rise, kept = spent.rise / 1e9, "kept" if spent.rise <= GOAL_GB * 1e9 else "missed"
    return (
        f"{applied[0].sentence}. On {len(windows)} windows of {windows.shape[1]}: at most {rise:.2f} GB over two "
        f"models of {weights / 1e9:.2f} GB; the goal of {GOAL_GB} GB is {kept}. {spent.cpu:.0f} s of CPU time"
    )


def windows_of(arguments: argparse.Namespace, tokenizer: Any) -> torch.Tensor:  # noqa: ANN401
    """Token ids [windows, window] from the beginning of the text."""
    if arguments.text is None:
        raise SystemExit("--memory learns from a text: give one with --text")
    count = arguments.windows * arguments.window
    ids = tokenizer(arguments.text.read_text()[: 20 * count], add_special_tokens=False)["input_ids"]
    rows = len(ids[:count]) // arguments.window
    return torch.tensor(ids[: rows * arguments.window]).reshape(rows, arguments.window)


if __name__ == "__main__":
    main()

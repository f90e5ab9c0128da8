"""What is saved loads to equal logits, with transformers and with our loader; what cannot be is refused."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, GROUPED, save_tiny, tiny_model, tiny_tokenizer, tiny_tokens
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_llmslim.errors import ModelError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.bitsandbytes_linear import FP4, NF4, Int8
from pytest_llmslim.methods.eora import EoRA
from pytest_llmslim.methods.hidden import Hidden
from pytest_llmslim.methods.lora import LoRA
from pytest_llmslim.methods.low_rank import LowRank
from pytest_llmslim.methods.magnitude import Magnitude
from pytest_llmslim.methods.rtn import RTN
from pytest_llmslim.methods.torchao_linear import Int8Dynamic, Int8Fbgemm, Int8Weight
from pytest_llmslim.methods.width import Width
from pytest_llmslim.models import saving
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.linear_parts import resized
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.models.saving import folder_name, save
from pytest_llmslim.models.storage import copy_model, stored_bytes, weights_hash

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = tiny_tokens(2, 40, seed=5)  # longer than the tiny models' sliding window
TOKENIZER = tiny_tokenizer()


class Uneven:
    """Heads cut as head pruning cuts them: a group of the first layer, the second layer stays."""

    def compress(self, module: nn.Module, context: Context) -> Uneven:
        Blocks(module).layers[0].attention.remove_kv_groups({1})
        self.module = module
        return self


def made(family: str, *steps: object, **shape: object) -> nn.Module:
    reference = tiny_model(family, **shape)
    context = Context(tiny_tokens(8, 24), 0, "cpu", family, "tiny", reference)
    module = copy_model(reference)
    for step in steps:
        module = step.compress(module, context).module
    return module


def logits(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(TOKENS).logits


def by_transformers(folder: Path) -> nn.Module:
    """As a user without this package loads it."""
    with quiet():
        module, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return module.eval()


def saved(module: nn.Module, folder: Path) -> tuple[nn.Module, nn.Module, dict]:
    """Save it; as transformers and as `load_model` load it, and the card. It is not changed by being saved."""
    before, was = weights_hash(module), logits(module)
    notes = save(module, tokenizer_for(module, folder.parent), folder, {"recipe": "any", "seed": 1})
    card = json.loads((folder / "llmslim.json").read_text())

    assert before == weights_hash(module)
    assert torch.equal(was, logits(module))
    assert [*notes] == card["checkpoint"]["notes"]
    assert {"model.safetensors"} == {file.name for file in folder.iterdir() if file.suffix not in (".json",)}
    return by_transformers(folder), load_model(str(folder)).module, card


def tokenizer_for(module: nn.Module, place: Path) -> object:
    """Transformers reads any tokenizer beside a Qwen2 as Qwen2's; so that one is saved as it was read."""
    if module.config.model_type != "qwen2":
        return TOKENIZER
    TOKENIZER.save_pretrained(place / "tokenizer")
    module.config.save_pretrained(place / "tokenizer")
    return AutoTokenizer.from_pretrained(place / "tokenizer")


def check_equal(module: nn.Module, *loaded: nn.Module, share: float = 0.0) -> None:
    """Logits differ by at most this share of the largest."""
    wanted = logits(module)
    for each in loaded:
        assert float((logits(each) - wanted).abs().max()) <= share * float(wanted.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step", [Magnitude(), Int8(threshold=3.0), NF4()], ids=["float", "int8", "nf4"])
def test_plain_and_quantized_models_come_back_bit_by_bit(step, family, tmp_path):
    """Pruned, LLM.int8() and 4-bit models of every family: equal logits, weights and bytes, nothing to note."""
    module = made(family, step)
    theirs, ours, card = saved(module, tmp_path / "candidate")

    check_equal(module, theirs, ours)
    assert weights_hash(module) == weights_hash(ours)
    assert stored_bytes(module) == pytest.approx(
        stored_bytes(ours), abs=64
    )  # scales that were nested leave an offset
    assert {"recipe": "any", "seed": 1, "schema": 1, "checkpoint": {"notes": []}} == card
    text = (tmp_path / "candidate" / "llmslim.json").read_text()
    assert text == json.dumps(card, sort_keys=True, indent=2) + "\n"


@pytest.mark.parametrize(
    ("family", "step"),
    [
        ("gpt2", NF4(double_quant=False, compute_dtype="bfloat16")),
        ("llama", FP4()),
        ("gemma3", FP4(double_quant=False)),
        ("qwen3", Int8(threshold=0.0)),
    ],
)
def test_settings_of_quantizers_come_back(family, step, tmp_path):
    """Code book, threshold and compute dtype are in the config."""
    module = made(family, step)
    theirs, ours, _ = saved(module, tmp_path / "candidate")
    config = json.loads((tmp_path / "candidate" / "config.json").read_text())["quantization_config"]

    check_equal(module, theirs, ours)
    assert isinstance(step, Int8) == config["load_in_8bit"]
    if isinstance(step, Int8):
        assert step.threshold == config["llm_int8_threshold"]
    else:
        assert step.name == config["bnb_4bit_quant_type"]
        assert ("bfloat16" if step.compute_dtype == "bfloat16" else "float32") == config[
            "bnb_4bit_compute_dtype"
        ]


@pytest.mark.parametrize("double", [True, False])
def test_four_bits_that_no_kernel_packed(double, tmp_path, monkeypatch):
    """On a CPU without AVX512-BF16, or before the first forward, nested scales are saved as they are."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    module = made("llama", NF4(double_quant=double))
    assert double == module.model.layers[0].mlp.up_proj.weight.quant_state.nested
    theirs, ours, _ = saved(module, tmp_path / "candidate")

    check_equal(module, theirs, ours)
    assert double == ours.model.layers[0].mlp.up_proj.weight.quant_state.nested
    assert stored_bytes(module) == stored_bytes(ours)


def test_four_bits_in_a_shape_that_some_cpus_cannot_multiply_are_float(tmp_path):
    """Transformers would load them for a kernel that fails; the card says how many."""
    module = made("llama", NF4(), intermediate_size=80)
    theirs, ours, card = saved(module, tmp_path / "candidate")
    kinds = [type(linear).__name__ for linear in Blocks(ours).layers[0].linears.values()]

    check_equal(module, theirs, ours, share=1e-5)
    assert ["Linear4bit"] * 4 + ["Linear"] * 3 == kinds
    assert [
        "bitsandbytes' 4-bit weights are stored as float where some CPUs cannot multiply their shape (4 linears)"
    ] == card["checkpoint"]["notes"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("step", [RTN(bits=3, group=32), RTN(bits=8, symmetric=False)], ids=["rtn3", "rtn8"])
def test_packed_codes_are_saved_as_the_same_floats(step, family, tmp_path):
    """Bit by bit the same logits, and the card says that they are float."""
    module = made(family, step)
    theirs, ours, card = saved(module, tmp_path / "candidate")
    linears = Blocks(ours).linears()

    check_equal(module, theirs, ours)
    assert {nn.Linear} == {type(linear) for linear in linears.values()}
    assert [f"weights of PackedLinear are stored as float ({len(linears)} linears)"] == card["checkpoint"][
        "notes"
    ]


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize(
    "steps", [(Magnitude(), EoRA(rank=4)), (RTN(bits=3), LoRA(rank=2, steps=2))], ids=["eora", "lora"]
)
def test_terms_over_float_weights_are_merged(steps, family, tmp_path):
    """Equal up to the rounding of the sum; over packed codes, too, which are float in a checkpoint anyway."""
    module = made(family, *steps)
    theirs, ours, card = saved(module, tmp_path / "candidate")
    over = "" if isinstance(steps[0], Magnitude) else "; weights of PackedLinear are stored as float"
    count = len(Blocks(ours).linears())

    check_equal(module, theirs, ours, share=1e-5)
    assert [f"low-rank terms are merged into float weights{over} ({count} linears)"] == card["checkpoint"][
        "notes"
    ]


def test_a_masked_term_keeps_the_zeros(tmp_path):
    """As training leaves it, before its own merge."""
    module = made("llama", Magnitude(pattern="2:4"))
    linear = module.model.layers[0].mlp.up_proj
    zeros = linear.weight == 0
    module.model.layers[0].mlp.up_proj = LowRank(linear, torch.ones(1, 64), torch.ones(128, 1), masked=True)
    theirs, _, _ = saved(module, tmp_path / "candidate")

    check_equal(module, theirs, share=1e-5)
    assert torch.equal(zeros, theirs.model.layers[0].mlp.up_proj.weight == 0)


@pytest.mark.parametrize(
    ("family", "step", "exact"),
    [
        ("llama", "Int8Weight", True),
        ("gemma3", "Int8Dynamic", True),
        ("opt", "Int8Dynamic", True),
        ("gpt2", "Int8Weight", False),
    ],
)
def test_tensors_of_torchao_come_back(family, step, exact, tmp_path):
    """Through transformers' TorchAoConfig and bit by bit; as float for GPT-2, whose weights it has transposed."""
    pytest.importorskip("torchao")
    module = made(family, {"Int8Weight": Int8Weight, "Int8Dynamic": Int8Dynamic}[step]())
    theirs, ours, card = saved(module, tmp_path / "candidate")

    check_equal(module, theirs, ours, share=0.0 if exact else 1e-5)
    assert exact == (weights_hash(module) == weights_hash(ours))
    told = [] if exact else [
        "weights of torchao are stored as float where a checkpoint needs it, since transformers has it transposed "
        "(8 linears)"
    ]  # fmt: skip
    assert told == card["checkpoint"]["notes"]


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_with_unequal_heads_are_padded_and_cut_again(family, tmp_path):
    """Transformers sees heads of zeros, our loader takes them out: equal logits and text, the small model's weights."""
    module = made(family, Uneven())
    groups = [layer.attention.kv_heads for layer in Blocks(module).layers]
    theirs, ours, card = saved(module, tmp_path / "candidate")

    check_equal(module, theirs, ours)
    assert [groups[1]] * 2 == [layer.attention.kv_heads for layer in Blocks(theirs_linear(theirs)).layers]
    assert (
        groups
        == [layer.attention.kv_heads for layer in Blocks(ours).layers]
        == card["checkpoint"]["key_value_groups"]
    )
    assert weights_hash(module) == weights_hash(ours)
    assert stored_bytes(module) == stored_bytes(ours) < stored_bytes(theirs)
    assert [
        f"layers with fewer than {groups[1]} key/value groups have heads of zeros beside them, which pytest-llmslim "
        "takes out again when it loads the folder"
    ] == card["checkpoint"]["notes"]
    prompt = TOKENS[:1, :8]
    texts = [
        each.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=3)
        for each in (module, ours, theirs)
    ]
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])


def theirs_linear(module: nn.Module) -> nn.Module:
    from pytest_llmslim.models.conv1d import from_conv1d

    from_conv1d(module)
    return module


@pytest.mark.parametrize(
    ("family", "step"),
    [("gpt2", Int8(threshold=3.0)), ("llama", Int8()), ("qwen3", NF4()), ("gemma3", FP4()), ("opt", RTN())],
)
def test_quantized_linears_are_padded_and_cut_too(family, step, tmp_path):
    """Codes of zero, scales of zero: bit by bit the same, and cut to what the candidate had."""
    module = made(family, Uneven(), step)
    theirs, ours, _ = saved(module, tmp_path / "candidate")

    check_equal(module, theirs, ours)
    if not isinstance(step, RTN):
        assert weights_hash(module) == weights_hash(ours)
        assert stored_bytes(module) == pytest.approx(stored_bytes(ours), abs=64)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_four_bits_that_padding_would_change_are_float(family, tmp_path):
    """Heads of 16 make rows of 48, which stay out of the kernels; padded they would be rounded as others are."""
    module = made(family, Uneven(), NF4())
    theirs, ours, card = saved(module, tmp_path / "candidate")

    check_equal(module, theirs, ours, share=1e-5)
    assert any("stored as float where some CPUs" in note for note in card["checkpoint"]["notes"])


def test_a_candidate_that_was_loaded_is_saved_again(tmp_path):
    """The second folder is as the first."""
    module = made("gpt2", Uneven(), Int8())
    _, once, card = saved(module, tmp_path / "once")
    _, twice, again = saved(once, tmp_path / "twice")

    assert weights_hash(module) == weights_hash(twice)
    assert card == again


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen3"])
def test_shapes_that_the_config_can_tell_are_told(family, tmp_path):
    """Fewer heads in every layer, and a narrower hidden state: no padding where the family states the heads' width."""
    module = made(family, Width(ratio=0.25, heads=0.5))
    theirs, ours, card = saved(module, tmp_path / "candidate")

    check_equal(module, theirs, ours)
    assert weights_hash(module) == weights_hash(ours)
    assert (family in GROUPED) == ("key_value_groups" not in card["checkpoint"])
    narrow = made(family, Hidden(ratio=0.25))
    check_equal(narrow, *saved(narrow, tmp_path / "narrow")[:2])


def test_a_uniform_cut_that_the_config_in_memory_does_not_tell(tmp_path):
    """Head pruning leaves the config as it was; the checkpoint's is right."""
    module = tiny_model("qwen3")
    for layer in Blocks(module).layers:
        layer.attention.remove_kv_groups({0})
    theirs, ours, card = saved(module, tmp_path / "candidate")

    check_equal(module, theirs, ours)
    assert {"notes": []} == card["checkpoint"]
    assert (2, 1) == (theirs.config.num_attention_heads, theirs.config.num_key_value_heads)
    assert 4 == module.config.num_attention_heads


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_ties_are_told_as_they_are(tied, family, tmp_path):
    """Whatever the config in memory says of embeddings and head."""
    module = tiny_model(family, tie_word_embeddings=tied)
    head = module.get_output_embeddings()
    if tied:  # as a method might untie them
        head.weight = nn.Parameter(head.weight.detach() * 1.5, requires_grad=False)
    else:
        head.weight = module.get_input_embeddings().weight
    theirs, ours, _ = saved(module, tmp_path / "candidate")

    check_equal(module, theirs, ours)
    assert tied != theirs.config.tie_word_embeddings
    assert stored_bytes(module) == stored_bytes(ours)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays(dtype, tmp_path):
    """The config tells the dtype, and transformers loads in it."""
    module = load_model(str(save_tiny("llama", tmp_path / "source")), dtype=dtype).module
    save(module, TOKENIZER, tmp_path / "candidate", {})
    theirs = by_transformers(tmp_path / "candidate")

    check_equal(module, theirs)
    assert {getattr(torch, dtype)} == {parameter.dtype for parameter in theirs.parameters()}


def test_a_layer_that_is_there_twice_is_written_twice(tmp_path):
    """One module in two places has two names in a checkpoint."""
    module = tiny_model("llama")
    module.model.layers[1].mlp = module.model.layers[0].mlp
    theirs, _, _ = saved(module, tmp_path / "candidate")

    check_equal(module, theirs)


def test_large_models_are_split(tmp_path, monkeypatch):
    """Into files that an index lists."""
    monkeypatch.setattr(saving, "_SHARD", "100KB")
    module = tiny_model("llama")
    save(module, TOKENIZER, tmp_path / "candidate", {})
    files = sorted(file.name for file in (tmp_path / "candidate").glob("*.safetensors"))

    assert 1 < len(files)
    check_equal(
        module, by_transformers(tmp_path / "candidate"), load_model(str(tmp_path / "candidate")).module
    )


# Refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            (NF4(), EoRA(rank=4)),
            "a checkpoint holds a quantized linear or low-rank terms, not both, got terms over Linear4bit in "
            "model.layers.0.self_attn.q_proj; use lora(merge=true), or measure this candidate without saving it",
        ),
        (
            (Int8Fbgemm(),),
            "a checkpoint holds linears that transformers can load, got torch.ao's packed one in "
            "model.layers.0.self_attn.q_proj; use int8-weight, int8-dynamic or rtn(bits=8)",
        ),
        (
            (Uneven(), Int8Dynamic),
            "weights of int8-dynamic are saved as torchao's tensors, got model.layers.0.self_attn.q_proj, where that "
            "fails since heads of zeros are added to it; use int8-weight or rtn(bits=8)",
        ),
    ],
    ids=["terms over 4 bits", "torch.ao", "int8-dynamic padded"],
)
def test_what_no_checkpoint_can_hold_is_refused(steps, said, tmp_path):
    """What, why, next step; and nothing is left on the disk."""
    if Int8Dynamic in steps:
        pytest.importorskip("torchao")
        steps = (Uneven(), Int8Dynamic())
    with pytest.raises(ModelError) as caught:
        save(made("llama", *steps), TOKENIZER, tmp_path / "candidate", {})

    assert said == str(caught.value)
    assert [] == [*tmp_path.iterdir()]


def test_quantizers_mixed_in_one_model_are_refused(tmp_path):
    """The config has room for one."""
    module = made("llama", Int8())
    module.model.layers[1] = made("llama", NF4()).model.layers[1]
    with pytest.raises(
        ModelError,
        match=r"^the config of a checkpoint tells one way of quantizing for all linears, got int4 nf4 ",
    ):
        save(module, TOKENIZER, tmp_path / "candidate", {})


def test_heads_of_different_widths_are_refused(tmp_path):
    """One width in the config."""
    module = tiny_model("qwen3")
    module.model.layers[1].self_attn = tiny_model("qwen3", head_dim=16).model.layers[1].self_attn
    with pytest.raises(
        ModelError,
        match=r"^a checkpoint has heads of one width in groups of one size, got 2 heads of 16, 2 heads",
    ):
        save(module, TOKENIZER, tmp_path / "candidate", {})


def test_more_heads_than_the_config_derives_are_refused(tmp_path):
    """GPT-2's config makes the width of a head of their number."""
    module = tiny_model("gpt2")
    module.config.n_embd = 32
    with pytest.raises(
        ModelError, match=r"^the config of a checkpoint tells one number of heads .* got \[4, 4\] key/value"
    ):
        save(module, TOKENIZER, tmp_path / "candidate", {})


class Strange(nn.Module):
    """A linear of somebody else's, which says that it is a plain weight and adds one."""

    def __init__(self, linear: nn.Linear, *, readable: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, None
        self.hidden = linear
        if readable:
            self.dequantized = lambda: linear.weight.detach()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.hidden(inputs) + 1


def test_other_logits_are_an_error_and_nothing_is_left(tmp_path):
    """What was written is loaded and compared: a candidate of before stays as it was."""
    folder = tmp_path / "candidate"
    save(tiny_model("llama"), TOKENIZER, folder, {"recipe": "old"})
    module = tiny_model("llama")
    module.model.layers[0].mlp.up_proj = Strange(module.model.layers[0].mlp.up_proj)
    with pytest.raises(
        ModelError,
        match=r"^a saved candidate has the logits that it had, got 0\.\d+ of the largest as difference from "
        rf"from_pretrained; {re.escape(str(folder))} was not written$",
    ):
        save(module, TOKENIZER, folder, {"recipe": "new"})

    assert [folder] == [*tmp_path.iterdir()]
    assert "old" == json.loads((folder / "llmslim.json").read_text())["recipe"]


def test_a_linear_that_cannot_be_read_is_refused(tmp_path):
    """The error of the effective weight, and where."""
    module = tiny_model("llama")
    module.model.layers[0].mlp.up_proj = Strange(module.model.layers[0].mlp.up_proj, readable=False)
    with pytest.raises(
        ModelError,
        match=r"^a checkpoint holds linears that can be read, got model.layers.0.mlp.up_proj: a lin",
    ):
        save(module, TOKENIZER, tmp_path / "candidate", {})


def test_logits_that_are_not_finite_are_refused(tmp_path):
    """NaN equals nothing."""
    module = tiny_model("llama")
    module.model.norm.weight.data[0] = float("nan")
    with pytest.raises(
        ModelError, match=r"^a candidate to save has finite logits, got NaN or infinity; .* was not written$"
    ):
        save(module, TOKENIZER, tmp_path / "candidate", {})
    assert [] == [*tmp_path.iterdir()]


def test_what_does_not_load_again_is_refused(tmp_path):
    """A config that lies about a shape is found when the folder is loaded."""
    module = tiny_model("llama")
    module.config.intermediate_size = 64
    with pytest.raises(
        ModelError,
        match=r"^a saved candidate loads again, got \w+: .* from from_pretrained; .* was not written$",
    ):
        save(module, TOKENIZER, tmp_path / "candidate", {})
    assert [] == [*tmp_path.iterdir()]


def test_a_tokenizer_that_loads_otherwise_is_refused(tmp_path):
    """It is part of the candidate."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained = lambda folder: tiny_tokenizer(adds_bos=False).save_pretrained(folder)
    with pytest.raises(
        ModelError,
        match=r"^a saved tokenizer gives the tokens that it gave, got \d+ others instead of \d+ for",
    ):
        save(tiny_model("llama"), tokenizer, tmp_path / "candidate", {})


# Folders -----------------------------------------------------------------------------------------------------


def test_a_candidate_is_replaced_as_a_whole(tmp_path):
    """Files of the one before are gone; parents are made; an empty folder is as none."""
    folder = tmp_path / "deep" / "candidate"
    folder.mkdir(parents=True)
    save(tiny_model("gpt2"), TOKENIZER, folder, {"recipe": "first"})
    (folder / "left.txt").write_text("over")
    save(tiny_model("llama"), TOKENIZER, folder, {"recipe": "second"})

    assert not (folder / "left.txt").exists()
    assert "second" == json.loads((folder / "llmslim.json").read_text())["recipe"]
    assert "llama" == load_model(str(folder)).family
    assert [folder] == [*folder.parent.iterdir()]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_ours_is_not_replaced(kind, tmp_path):
    """A folder with something else, or a file."""
    target = tmp_path / "mine"
    if kind == "folder":
        target.mkdir()
        (target / "thesis.tex").write_text("years")
    else:
        target.write_text("years")
    with pytest.raises(
        ModelError,
        match=r"^a candidate is saved to a new folder, an empty one, or one of a candidate saved before, got .*mine "
        r"with something else; name another folder$",
    ):
        save(tiny_model("llama"), TOKENIZER, target, {})
    assert [target] == [*tmp_path.iterdir()]


def test_a_full_disk_is_said_in_a_sentence(tmp_path, monkeypatch):
    """And what was written of it is gone."""

    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(
        ModelError,
        match=r"^a candidate can be written to .*candidate, got OSError: \[Errno 28\] No space left on device; make "
        r"room there, or name another folder$",
    ):
        save(tiny_model("llama"), TOKENIZER, tmp_path / "candidate", {})
    assert [] == [*tmp_path.iterdir()]


def test_a_rename_that_fails_puts_the_old_one_back(tmp_path, monkeypatch):
    """The candidate of before is there again."""
    folder = tmp_path / "candidate"
    save(tiny_model("llama"), TOKENIZER, folder, {"recipe": "old"})
    real = type(folder).rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise PermissionError(13, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(type(folder), "rename", failing)
    with pytest.raises(
        ModelError, match=r"^a candidate can be written to .* got PermissionError: \[Errno 13\]"
    ):
        save(tiny_model("llama"), TOKENIZER, folder, {"recipe": "new"})
    assert [folder] == [*tmp_path.iterdir()]
    assert "old" == json.loads((folder / "llmslim.json").read_text())["recipe"]


def test_what_a_killed_call_left_is_cleared(tmp_path):
    """Half a folder of before does not end up in the new one."""
    part = tmp_path / ".candidate.part"
    part.mkdir()
    (part / "half.safetensors").write_text("")
    save(tiny_model("llama"), TOKENIZER, tmp_path / "candidate", {})

    assert [tmp_path / "candidate"] == [*tmp_path.iterdir()]
    assert not (tmp_path / "candidate" / "half.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "{",
            "says what a saved candidate is, got JSONDecodeError: .*; save the candidate again, or delete the file to",
        ),
        ("[]", "says what a saved candidate is, got TypeError: "),
        ('{"schema": 1}', "says what a saved candidate is, got KeyError: 'checkpoint'"),
        (
            '{"schema": 2, "checkpoint": {}}',
            "has the schema 1 or an earlier one, got 2; update pytest-llmslim",
        ),
    ],
)
def test_a_damaged_card_is_an_error(content, said, tmp_path):
    """Heads of zeros would be measured without a word otherwise."""
    save(tiny_model("llama"), TOKENIZER, tmp_path / "candidate", {})
    (tmp_path / "candidate" / "llmslim.json").write_text(content)
    with pytest.raises(ModelError, match=rf"^llmslim.json of .*candidate {said}"):
        load_model(str(tmp_path / "candidate"))


@pytest.mark.parametrize("groups", [[1], [3, 2], [0, 2]])
def test_a_card_of_another_model_is_an_error(groups, tmp_path):
    """As many layers as the model has, and no more groups than they have."""
    save(made("llama", Uneven()), TOKENIZER, tmp_path / "candidate", {})
    card = tmp_path / "candidate" / "llmslim.json"
    content = json.loads(card.read_text())
    content["checkpoint"]["key_value_groups"] = groups
    card.write_text(json.dumps(content))
    with pytest.raises(
        ModelError, match=r"^llmslim.json keeps at most \[2, 2\] key/value groups of the layers, got \["
    ):
        load_model(str(tmp_path / "candidate"))


def test_a_changed_weight_is_noticed_by_the_comparison(tmp_path, monkeypatch):
    """The comparison that guards all of the above: a single weight that is written wrong."""

    def wrong(tensors: dict, file: Path, **named: object) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        save_file({**tensors, name: tensors[name] * 1.1}, file, **named)

    monkeypatch.setattr(saving, "save_file", wrong)
    with pytest.raises(ModelError, match="has the logits that it had"):
        save(tiny_model("llama"), TOKENIZER, tmp_path / "candidate", {})


def test_only_tensors_of_the_model_are_written(tmp_path):
    """No pickle, no optimizer, no key that transformers would not expect."""
    save(made("gpt2", NF4()), TOKENIZER, tmp_path / "candidate", {})
    names = load_file(tmp_path / "candidate" / "model.safetensors")

    assert "lm_head.weight" not in names
    assert torch.Size([64 * 192 // 2, 1]) == names["transformer.h.0.attn.c_attn.weight"].shape
    shutil.rmtree(tmp_path / "candidate")


@pytest.mark.parametrize("sections", [1, 3])
@pytest.mark.parametrize("size", [3, 6, 12])
def test_sections_are_cut_or_filled_each(sections, size):
    """By writing it out, row by row."""
    values = torch.arange(1, 13).reshape(6, 2)
    want, have = size // sections, 6 // sections
    expected = [
        values[part * have + row].tolist() if row < have else [0, 0]
        for part in range(sections)
        for row in range(want)
    ]

    assert expected == resized(values, 0, size, sections).tolist()


@pytest.mark.parametrize(
    ("model", "recipe", "name"),
    [
        ("embedded:llama", "int8", "embedded-llama-int8"),
        (
            "google/gemma-3-1b",
            "kd(steps=200, rate=1e-4)+ah90",
            "google-gemma-3-1b-kd-steps=200-rate=1e-4-ah90",
        ),
        ("gpt2", "wanda(pattern='2:4')", "gpt2-wanda-pattern=-2-4"),
        ("../../etc", "a/../b", "etc-a-..-b"),
        ("модель", "int8", "int8"),
    ],
)
def test_names_of_folders_are_safe(model, recipe, name):
    """Letters, digits and -_.= alone, and no way out of the folder."""
    assert name == folder_name(model, recipe)


def test_long_names_are_cut_with_a_digest():
    """Different recipes keep different names."""
    long = [folder_name("gpt2", "+".join(["lora(rank=8)"] * 30) + end) for end in ("", "+int8")]

    assert long[0] != long[1]
    assert all(len(name) == 120 and re.fullmatch(r"[A-Za-z0-9._=-]+-[0-9a-f]{8}", name) for name in long)

"""The methods that come with pytest-llmslim, by name: lazy targets, so that listing them imports none."""

from __future__ import annotations

from typing import Final

from pytest_llmslim.registry import DISTIL, PRUNE, QUANTIZE, RECOVER, SPARSIFY, Spec

_METHODS: Final = "pytest_llmslim.methods"
_BNB: Final = f"{_METHODS}.bitsandbytes_linear"
_AO: Final = f"{_METHODS}.torchao_linear"
_AH: Final = f"{_METHODS}.attention_heads:AttentionHeads"

_FOUR_BIT: Final = ("double_quant", "compute_dtype")
_TRAINING: Final = ("steps", "batch", "rate")
_STUDENT: Final = ("student", "temperature", "alpha", *_TRAINING)

# Invariants that are not kept, with the reasons, which a run of `--llm-conformance` shows.
_SCALES_MOVE: Final = (
    ("idempotent", "scales are rounded to 8 bits or bfloat16, so a second time finds others than the first"),
)
_UNEVEN: Final = (
    *_SCALES_MOVE,
    ("sign-equivariant", "NormalFloat has seven levels below 0 and eight above"),
)
_FP4: Final = (
    *_SCALES_MOVE,
    ("sign-equivariant", "a weight halfway between two levels goes up with one sign and down with the other"),
)
_LEVELS_256: Final = (
    (
        "idempotent",
        "codes -128 to 127 are 2/255 of the largest weight apart, so they cut it a little each time",
    ),
    ("sign-equivariant", "codes are -128 to 127, so the largest weight is cut only when it is positive"),
)
_NO_CHECKPOINT: Final = (
    (
        "survives-save-and-load",
        "transformers cannot load torch.ao's packed linears, so saving them is refused",
    ),
)
_SEARCHED: Final = (
    "channels are scaled before weights are rounded, by what is best for a block's whole output"
)
_AWQ: Final = (
    ("half-a-step", f"{_SEARCHED}: the scale is part of the step"),
    ("idempotent", f"{_SEARCHED}; other scales are found for rounded weights"),
    ("sign-equivariant", f"{_SEARCHED}, to which a linear of the other sign adds otherwise"),
    ("scale-equivariant", f"{_SEARCHED}, in which a larger linear counts for more"),
)
_GPTQ: Final = (
    ("half-a-step", "a weight makes up for the rounding of those before it, and may pass the nearest level"),
)
_TRAINS: Final = "weights are trained before they are rounded"
_QAT: Final = tuple(
    (name, _TRAINS) for name in ("half-a-step", "idempotent", "sign-equivariant", "scale-equivariant")
)
_SMOOTHED: Final = (
    *_LEVELS_256,
    ("scale-equivariant", "how much a channel is scaled before rounding depends on the size of the weights"),
)
_COMPENSATES: Final = (("kept-untouched", "weights that stay make up for those that go"),)
_HEADS_DIFFER: Final = (
    "layers are left with different numbers of heads, which no config of transformers can tell"
)
_AH_CONFIG: Final = (("config-agrees", _HEADS_DIFFER), ("reloads", _HEADS_DIFFER))
_CONTROL: Final = (
    ("changes-something", "the control changes nothing"),
    ("nan-weights-refused", "the control hands on what it gets"),
)
_LORA: Final = (
    (
        "error-of-linears-never-grows",
        "the loss of the whole model is trained, not the outputs of single linears",
    ),
    ("base-untouched", "terms are merged into float weights, unless merge=false"),
)

QUANTIZERS: Final = (
    Spec(
        "int8",
        f"{_BNB}:Int8",
        "LLM.int8() by bitsandbytes: rows of weights in 8 bits, outlier activations apart",
        ("threshold",),
        QUANTIZE,
    ),
    Spec(
        "int4",
        f"{_BNB}:NF4",
        "4-bit NormalFloat by bitsandbytes (QLoRA); the same as nf4",
        _FOUR_BIT,
        QUANTIZE,
        waives=_UNEVEN,
    ),
    Spec(
        "nf4", f"{_BNB}:NF4", "4-bit NormalFloat by bitsandbytes (QLoRA)", _FOUR_BIT, QUANTIZE, waives=_UNEVEN
    ),
    Spec("fp4", f"{_BNB}:FP4", "4-bit floating point by bitsandbytes", _FOUR_BIT, QUANTIZE, waives=_FP4),
    Spec(
        "rtn",
        f"{_METHODS}.rtn:RTN",
        "round to nearest: weights on an integer grid a tensor, a row or a group",
        ("bits", "group", "symmetric", "granularity"),
        QUANTIZE,
    ),
    Spec(
        "gptq",
        f"{_METHODS}.gptq:GPTQ",
        "rounds weight after weight and lets the rest make up for it, on calibration text",
        ("bits", "group", "symmetric", "samples", "damp"),
        QUANTIZE,
        waives=_GPTQ,
    ),
    Spec(
        "awq",
        f"{_METHODS}.awq:AWQ",
        "scales the channels that see large activations up before rounding",
        ("bits", "group", "symmetric", "samples"),
        QUANTIZE,
        waives=_AWQ,
    ),
    Spec(
        "smoothquant",
        f"{_METHODS}.smoothquant:SmoothQuant",
        "8-bit weights and activations, after moving outliers from these into those",
        ("alpha", "samples"),
        QUANTIZE,
        extra="torchao",
        waives=_SMOOTHED,
    ),
    Spec(
        "int8-dynamic",
        f"{_AO}:Int8Dynamic",
        "8-bit weights and activations by torchao, real integer products on a CPU",
        (),
        QUANTIZE,
        extra="torchao",
        waives=_LEVELS_256,
    ),
    Spec(
        "int8-weight",
        f"{_AO}:Int8Weight",
        "8-bit weights by torchao, multiplied in float",
        (),
        QUANTIZE,
        extra="torchao",
        waives=_LEVELS_256,
    ),
    Spec(
        "int8-fbgemm",
        f"{_AO}:Int8Fbgemm",
        "8-bit weights and activations by torch's own quantize_dynamic, CPU only",
        (),
        QUANTIZE,
        waives=(*_LEVELS_256, *_NO_CHECKPOINT),
    ),
    Spec(
        "qat",
        f"{_METHODS}.qat:QAT",
        "trains with rounded weights, then rounds them",
        ("bits", "group", "symmetric", *_TRAINING),
        QUANTIZE,
        waives=_QAT,
    ),
)

PRUNERS: Final = (
    Spec(
        "magnitude",
        f"{_METHODS}.magnitude:Magnitude",
        "zeroes the smallest weights of every linear, or all but N of every M",
        ("sparsity", "pattern"),
        SPARSIFY,
    ),
    Spec(
        "wanda",
        f"{_METHODS}.wanda:Wanda",
        "zeroes weights of small magnitude times activation, row by row",
        ("sparsity", "pattern", "samples"),
        SPARSIFY,
    ),
    Spec(
        "sparsegpt",
        f"{_METHODS}.sparsegpt:SparseGPT",
        "zeroes weights and lets the rest make up for it, on calibration text",
        ("sparsity", "pattern", "samples", "damp"),
        SPARSIFY,
        waives=_COMPENSATES,
    ),
    Spec(
        "ah",
        _AH,
        "removes attention heads that attend to a single token",
        ("threshold",),
        PRUNE,
        waives=_AH_CONFIG,
    ),
    Spec("ah90", _AH, "ah(threshold=0.9)", (), PRUNE, (("threshold", 0.9),), waives=_AH_CONFIG),
    Spec("ah80", _AH, "ah(threshold=0.8)", (), PRUNE, (("threshold", 0.8),), waives=_AH_CONFIG),
    Spec(
        "depth",
        f"{_METHODS}.depth:Depth",
        "removes whole layers, those that change the hidden states least first",
        ("layers", "ratio", "by", "samples"),
        PRUNE,
    ),
    Spec(
        "layers",
        f"{_METHODS}.depth:Layers",
        "skips, repeats or reorders layers",
        ("map",),
        PRUNE,
    ),
    Spec(
        "width",
        f"{_METHODS}.width:Width",
        "removes feed-forward channels and attention heads that carry little",
        ("ratio", "heads", "samples"),
        PRUNE,
    ),
    Spec(
        "hidden",
        f"{_METHODS}.hidden:Hidden",
        "removes channels of the hidden state that carry little, everywhere",
        ("ratio", "samples"),
        PRUNE,
    ),
    Spec(
        "shear",
        f"{_METHODS}.shear:Shear",
        "cuts to a given shape, by masks learnt under constraints (Sheared LLaMA)",
        ("layers", "heads", "inner", "hidden", *_TRAINING),
        PRUNE,
    ),
)

TRAINED: Final = (
    Spec("kd", f"{_METHODS}.kd:KD", "a smaller student learns the teacher's distribution", _STUDENT, DISTIL),
    Spec(
        "seqkd",
        f"{_METHODS}.kd:SeqKD",
        "a smaller student learns text that the teacher writes",
        ("student", *_TRAINING),
        DISTIL,
    ),
    Spec(
        "minillm",
        f"{_METHODS}.minillm:MiniLLM",
        "a smaller student learns by reverse KL on text it writes itself",
        ("student", "mix", *_TRAINING),
        DISTIL,
    ),
    Spec(
        "gkd",
        f"{_METHODS}.gkd:GKD",
        "a smaller student learns by a generalised JSD on its own text",
        ("student", "beta", "on_policy", "temperature", *_TRAINING),
        DISTIL,
    ),
    Spec(
        "minitron",
        f"{_METHODS}.presets:Minitron",
        "prunes width and depth, then learns from the unpruned model",
        ("ratio", "heads", "hidden", "layers", *_TRAINING),
        DISTIL,
    ),
    Spec(
        "sheared",
        f"{_METHODS}.presets:Sheared",
        "shears to a shape, then trains on text",
        ("layers", "heads", "inner", "hidden", *_TRAINING),
        DISTIL,
    ),
    Spec(
        "lora",
        f"{_METHODS}.lora:LoRA",
        "heals what earlier steps lost by training low-rank terms",
        ("rank", "target", "merge", *_TRAINING),
        RECOVER,
        waives=_LORA,
    ),
    Spec(
        "eora",
        f"{_METHODS}.eora:EoRA",
        "makes up for what earlier steps lost by low-rank terms, without training",
        ("rank", "samples"),
        RECOVER,
    ),
)

BUILTIN_METHODS: Final[tuple[Spec, ...]] = (
    Spec(
        "identity",
        f"{_METHODS}.identity:Identity",
        "changes nothing: the control of an A/A run",
        waives=_CONTROL,
    ),
    *QUANTIZERS,
    *PRUNERS,
    *TRAINED,
)

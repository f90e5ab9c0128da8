"""What the tests of all distillations share: a context, a deeper tiny model, and loading again."""

from __future__ import annotations

from functools import cache, partial

import torch
from tiny_models import tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM

from pytest_llmslim.evals import text
from pytest_llmslim.methods import Context
from pytest_llmslim.models.conv1d import to_conv1d
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.models.storage import copy_model, parameter_count, weights_hash


def context(reference=None, *, length=16, **options):
    """Windows of random tokens, as many as are asked for."""
    return Context(
        tiny_tokens(8, length),
        device="cpu",
        family="llama",
        label="tiny",
        reference=reference,
        draw=lambda count: tiny_tokens(64, length)[:count],
        **{"seed": 0, **options},
    )


def deep(family, layers, **overrides):
    """A tiny model of so many layers."""
    if family == "gemma3":
        overrides["layer_types"] = (["sliding_attention", "full_attention"] * layers)[:layers]
    return tiny_model(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": layers}, **overrides)


def logits(module):
    with torch.no_grad():
        return module(input_ids=tiny_tokens(2, 16)).logits


def reloaded(module, folder):
    """`module` after `save_pretrained` and `from_pretrained`."""
    module = copy_model(module)
    if module.config.model_type == "gpt2":
        to_conv1d(module)
    with quiet():
        module.save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder).eval()


def check_step(method, family, folder):
    """One step of `method` on a model of `family`: half the layers, the teacher untouched, loads again, writes."""
    model = tiny_model(family)
    before = weights_hash(model)
    applied = method.compress(copy_model(model), context(model))
    student = applied.module

    assert before == weights_hash(model)
    assert all(not p.requires_grad and p.grad is None for p in (*model.parameters(), *student.parameters()))
    assert 1 == student.config.num_hidden_layers
    assert parameter_count(student) < parameter_count(model)
    assert "" == applied.simulated == applied.resumed
    assert torch.allclose(logits(student), logits(reloaded(student, folder)), atol=1e-5)
    with torch.no_grad():
        written = student.generate(tiny_tokens(2, 5), max_new_tokens=4, do_sample=False, pad_token_id=3)
    assert (2, 9) == tuple(written.shape)
    return applied


@cache
def embedded(name, windows=64):
    """An embedded model with a context of text for it, and 8 windows [8, 256] of other text."""
    loaded = load_model(f"embedded:{name}")
    source = text.grammar_text(9)
    cut = partial(text.cut, source, tokenizer=loaded.tokenizer, tokens=8 * 255, window=256)
    passage = cut(stride=None, bos="auto", dtype="float32", longest=512)
    drawn = passage.rest(windows)
    where = Context(drawn[:8], 0, "cpu", loaded.family, name, loaded.module, lambda count: drawn[:count])
    return loaded.module, where, torch.cat(passage.windows)


def surprise(module, windows):
    """Nats a token on windows [n, length]."""
    with torch.no_grad():
        logits = module(input_ids=windows, use_cache=False).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))

"""Tiny classifiers of every known family, random or taught a toy rule, for tests of all rooms."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
from tiny_models import WORDS, tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.strategies.tiny import tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

LABELS = ("ham", "spam")


def tiny_classifier(family: str, *, labels: tuple[str, ...] = LABELS, **overrides: object) -> nn.Module:
    """A random classifier on the body of `tiny_model(family)`, as transformers makes it; no token of padding."""
    body = tiny_model(family, conv1d=True, **overrides)
    config = body.config
    config.pad_token_id = overrides.get("pad_token_id")
    config.id2label, config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    made.base_model.load_state_dict(body.base_model.state_dict())
    return made.eval()


def save_classifier(module: nn.Module, folder: Path) -> Path:
    """A whole model folder, as `save_pretrained` writes it."""
    with quiet():
        module.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return folder


def toy_rows(count: int, *, seed: int) -> list[tuple[str, int]]:
    """Texts with labels: spam (1, a third of them) are those in which `war` comes, at any place."""
    draw = random.Random(seed)
    others = [word for word in WORDS if word.isalpha() and word != "war"]
    rows = []
    for i in range(count):
        words, spam = draw.choices(others, k=draw.randint(4, 12)), i % 3 == 0
        if spam:
            words[draw.randrange(len(words))] = "war"
        rows.append((" ".join(words), int(spam)))
    return rows


def taught_classifier(family: str = "llama", *, steps: int = 60) -> nn.Module:
    """A tiny classifier that has learned the rule of `toy_rows`, in about two seconds."""
    module, tokenizer = tiny_classifier(family, pad_token_id=3).train().requires_grad_(True), tiny_tokenizer()
    rows = toy_rows(600, seed=0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for step in range(steps):
        batch = [rows[i % len(rows)] for i in range(step * 32, step * 32 + 32)]
        asked = tokenizer([text for text, _ in batch], padding=True, return_tensors="pt")
        loss = module(
            input_ids=asked["input_ids"],
            attention_mask=asked["attention_mask"],
            labels=torch.tensor([label for _, label in batch]),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval().requires_grad_(False)

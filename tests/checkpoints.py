"""Checkpoints as a team ships them: the embedded GPT-2 in half precision, with more or less damage."""

from __future__ import annotations

import shutil

import torch
from transformers import AutoModelForCausalLM

from pytest_llmslim.models import embedded


def ship(folder, damage=0.0):
    """Write a checkpoint whose weights are off by such a share of themselves; the same on every call."""
    source = embedded.folder("gpt2")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for matrix in (each for each in model.parameters() if each.dim() == 2):
            matrix.mul_(1 + damage * torch.randn(matrix.shape, generator=draw).to(matrix))
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    for path in source.glob("tokenizer*"):
        shutil.copy(path, folder)

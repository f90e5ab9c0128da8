"""The control."""

from __future__ import annotations

from tiny_models import tiny_model

from pytest_llmslim.integrity import check
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.identity import Identity
from pytest_llmslim.models.storage import copy_model


def test_identity_is_a_control():
    """The identity hands its module back, equal to the reference and with a real cost."""
    reference = tiny_model("gpt2")
    module = copy_model(reference)
    applied = Identity().compress(module, Context(None, 0, "cpu", "gpt2", "tiny"))

    assert applied.module is module
    assert ("identity: nothing was changed", "") == (applied.sentence, applied.simulated)
    assert "control" == check(reference, applied.module, control=True, simulated=()).status

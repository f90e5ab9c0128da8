"""Whose code failed: a candidate is anybody's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_llmslim.errors import EvaluationError, SlimError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def blaming(label: str, where: str) -> Iterator[None]:
    """Name the model, and where it failed, in one sentence.

    Args:
        label: of the model, e.g. `int4 on gpt2`.
        where: ends `failed ...`, e.g. `in a forward pass of 9 tokens`.

    Raises:
        EvaluationError: anything but an error of ours was raised inside.
    """
    try:
        yield
    except SlimError:
        raise
    except Exception as error:
        raise EvaluationError(
            f"{label} failed {where} ({type(error).__name__}: {error}); run the model by itself to see where"
        ) from error

"""The table of what each step of a recipe contributes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.ablation import Attribution, Ratios

_WAYS = ("alone", "in order", "left out")
_AXES = ("ppl", "time", "energy", "bytes")
_WIDTH = 9  # of a cell


def lines(attributions: Sequence[Attribution]) -> list[str]:
    """One table a recipe; empty without any."""
    return [line for each in attributions for line in _table(each)]


def _table(attribution: Attribution) -> list[str]:
    label = max(len(step.step) for step in attribution.steps)
    label = max(label, len("whole"))
    way = _WIDTH * len(_AXES)
    heads = "  ".join(name.ljust(way) for name in _WAYS)
    axes = "  ".join("".join(axis.rjust(_WIDTH) for axis in _AXES) for _ in _WAYS)
    rows = [
        f"  {step.step:<{label}}  " + "  ".join(_cells(ratios, attribution.estimated) for ratios in ways)
        for step in attribution.steps
        for ways in [(step.alone, step.in_order, step.left_out)]
    ]
    return [
        f"what each step of {attribution.recipe} on {attribution.model} changes",
        f"  {'':<{label}}  {heads}".rstrip(),
        f"  {'':<{label}}  {axes}",
        *rows,
        f"  {'whole':<{label}}  {_cells(attribution.whole, attribution.estimated)}",
        "",
    ]


def _cells(ratios: Ratios, estimated: bool) -> str:
    return "".join(
        _cell(ratio, mark="~" if estimated and axis == "energy" else "").rjust(_WIDTH)
        for axis, ratio in zip(_AXES, ratios, strict=True)
    )


def _cell(ratio: float | None, mark: str) -> str:
    """A ratio as a change in percent, or as a factor where it is large; `-` where it was not measured."""
    if ratio is None:
        return "-"
    change = round(100 * (ratio - 1), 1) + 0.0  # -0.0 reads as a gain
    if change >= 1000:
        return f"{mark}{ratio:.3g}x"
    return f"{mark}{change:+.0f} %" if change >= 100 else f"{mark}{change:+.1f} %"

"""No joule leaves a meter under a better name than it earned, whatever happens around it."""

from __future__ import annotations

import math

from fake_nvml import Card, FakeNvml, VirtualClock, VirtualSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmslim.meters.crosscheck import CrossCheck
from pytest_llmslim.meters.gpus import visible_gpus
from pytest_llmslim.meters.net import NetMeter
from pytest_llmslim.meters.nvml import NvmlCounter, NvmlPower
from pytest_llmslim.meters.window import WindowMeter

EARNED = {"nvml-counter": "measured", "nvml-power": "sampled", "model": "estimated"}
"""What a reading of each source may be called."""


class Model(WindowMeter):
    """Watts from a table times time."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(
            source="model", method="estimated", resolution=0.01, description="a model", clock=clock
        )

    def _begin(self) -> None:
        pass

    def _end(self, seconds: float) -> float:
        return 28.0 * seconds


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["counter", "power", "checked", "model"]),
    net=st.booleans(),
    events=st.lists(
        st.one_of(
            st.tuples(st.just("window"), st.floats(0.0, 40.0)),
            st.tuples(
                st.sampled_from(["lose", "find", "reset", "stick", "back", "start", "stop"]), st.just(0.5)
            ),
        ),
        max_size=12,
    ),
)
def test_an_approximated_joule_is_never_called_measured(
    kind: str, net: bool, events: list[tuple[str, float]]
) -> None:
    """Over windows of any length with faults, resets and clocks set back, source and method stay what they are."""
    clock, card = VirtualClock(), Card(tick_s=0.01, has_instant=kind != "power")
    nvml = FakeNvml(card, clock=clock)
    gpus = visible_gpus(nvml, "cuda")
    made = {
        "counter": lambda: NvmlCounter(nvml, gpus, clock=clock),
        "power": lambda: NvmlPower(nvml, gpus, clock=clock, sampler=VirtualSampler, period_s=0.1),
        "checked": lambda: CrossCheck(made["counter"](), made["power"](), wait=clock.pass_s),
        "model": lambda: Model(clock),
    }
    meter = made[kind]()
    if net:
        meter = NetMeter(meter, clock=clock, wait=clock.pass_s)
    readings = []
    for event, seconds in events:
        if event in ("window", "start"):
            meter.start()
        nvml.lost = (nvml.lost and event != "find") or event == "lose"
        card.idle_w += 1.0
        card.offset_mj -= 10**9 if event == "reset" else 0
        card.tick_s = math.inf if event == "stick" else 0.01
        clock.now_ns -= 10**9 if event == "back" else 0
        clock.pass_s(seconds)
        if event in ("window", "stop"):
            readings.append(meter.stop())
    meter.close()
    meter.start()
    readings.append(meter.stop())
    assert readings[-1].value is None
    for reading in (*readings, meter.metering().idle_w):
        if reading.value is None:
            assert reading.method == "unmeasured"
            assert reading.reason
        else:
            assert reading.method == EARNED[reading.source]
            assert reading.value > 0

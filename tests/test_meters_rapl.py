"""The RAPL meter against a powercap tree whose counters count."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from fake_nvml import VirtualClock
from fake_rapl import READ_S, Access, FakeRapl, FakeZone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.rapl import Rapl, Zone, open_rapl
from pytest_llmslim.records import Metering

PACKAGE = FakeZone("intel-rapl:0", "package-0", watts=100.0, offset_uj=5_000_000)


def opened(root: Path, *zones: FakeZone) -> tuple[Rapl, FakeRapl]:
    clock = VirtualClock()
    fake = FakeRapl(root, *zones, clock=clock)
    return open_rapl(root=root, read=fake.read, clock=clock), fake


def joules(meter: Rapl, fake: FakeRapl, seconds: float) -> float:
    meter.start()
    fake.clock.pass_s(seconds)
    reading = meter.stop()
    assert reading.value is not None, reading.reason
    return reading.value


def test_one_package(tmp_path: Path) -> None:
    """A package at 100 W for 2 s used 200 J, and the reading says from where and how fine."""
    meter, fake = opened(tmp_path, PACKAGE)
    assert joules(meter, fake, 2.0) == pytest.approx(200.0, abs=0.2)
    assert (meter.source, meter.method) == ("rapl", "measured")
    assert meter.resolution == pytest.approx(0.001, abs=2 * READ_S)
    assert meter.description == (
        "RAPL counters package-0, updated every 1.00 ms; not cross-checked, since no other source here measures"
    )
    assert meter.metering() == Metering("gross", second_source="")


def test_two_sockets_and_dram_are_summed_and_parts_are_not(tmp_path: Path) -> None:
    """Packages and their DRAM count once; core, uncore, psys and the MMIO view do not count."""
    meter, fake = opened(
        tmp_path,
        PACKAGE,
        FakeZone("intel-rapl:0:0", "core", watts=70.0),
        FakeZone("intel-rapl:0:1", "uncore", watts=5.0),
        FakeZone("intel-rapl:0:2", "dram", watts=10.0),
        FakeZone("intel-rapl:1", "package-1", watts=60.0, offset_uj=5_000_000),
        FakeZone("intel-rapl:1:0", "dram", watts=20.0),
        FakeZone("intel-rapl:2", "psys", watts=300.0),
        FakeZone("intel-rapl-mmio:0", "package-0", watts=100.0),
    )
    assert joules(meter, fake, 2.0) == pytest.approx(2 * (100 + 10 + 60 + 20), abs=0.5)
    assert "package-0 + package-0/dram + package-1 + package-1/dram" in meter.description


def test_a_wrap_is_made_good(tmp_path: Path) -> None:
    """A counter that passes its range within the window gives exact joules."""
    zone = FakeZone(
        "intel-rapl:0", "package-0", watts=100.0, range_uj=65_000_000_000, offset_uj=64_900_000_000
    )
    meter, fake = opened(tmp_path, zone)
    assert joules(meter, fake, 10.0) == pytest.approx(1000.0, abs=0.2)


@settings(deadline=None)
@given(watts=st.floats(1.0, 900.0), seconds=st.floats(0.021, 60.0), offset=st.integers(0, 64_999_999_999))
def test_joules_are_exact_over_any_wrap(watts: float, seconds: float, offset: int) -> None:
    """Wherever the counter stands, a window gives power times time to within one microjoule of rounding."""
    zone = Zone("package-0", Path("energy_uj"), 65_000_000_000)
    used_uj = round(watts * seconds * 1e6)
    assert zone.used(offset, (offset + used_uj) % zone.range_uj, seconds) == used_uj


@pytest.mark.parametrize(
    ("before", "after", "seconds", "said"),
    [
        (5, 5, 1.0, "The RAPL counter package-0 stood still in a window of 1.00 s."),
        (
            60_000_000_000,
            10,
            1.0,
            "The RAPL counter package-0 jumped from 60000000000 to 10 uJ within 1.00 s",
        ),
        (5, 10, 66.0, "may be longer than one turn of the RAPL counter package-0; keep windows under 65.0 s"),
    ],
)
def test_what_is_no_energy_is_refused(before: int, after: int, seconds: float, said: str) -> None:
    """Standing still, a reset, and a window longer than one turn each have their sentence."""
    with pytest.raises(MeasurementError, match=said):
        Zone("package-0", Path("energy_uj"), 65_000_000_000).used(before, after, seconds)


def test_mirrored_dies_count_once(tmp_path: Path) -> None:
    """Dies of a package that show the same counter are one counter."""
    mirror = {"watts": 68.0, "offset_uj": 7_000_000_000}
    meter, fake = opened(
        tmp_path,
        FakeZone("intel-rapl:0", "package-0-die-0", **mirror),
        FakeZone("intel-rapl:1", "package-0-die-1", **mirror),
    )
    assert joules(meter, fake, 2.0) == pytest.approx(136.0, abs=0.3)
    assert meter.description.startswith("RAPL counters package-0-die-0, updated")


def test_real_dies_and_equal_sockets_count_each(tmp_path: Path) -> None:
    """Dies with counters of their own are summed, and so are two sockets that happen to agree."""
    equal = {"watts": 50.0, "offset_uj": 9_000_000_000}
    meter, fake = opened(
        tmp_path,
        FakeZone("intel-rapl:0", "package-0-die-0", watts=50.0, offset_uj=1_000_000_000),
        FakeZone("intel-rapl:1", "package-0-die-1", watts=50.0, offset_uj=3_000_000_000),
        FakeZone("intel-rapl:2", "package-1-die-0", **equal),
        FakeZone("intel-rapl:3", "package-2-die-0", **equal),
    )
    assert joules(meter, fake, 2.0) == pytest.approx(400.0, abs=0.5)


def test_a_dead_dram_counter_is_left_out(tmp_path: Path) -> None:
    """A DRAM counter that never moves does not spoil the package."""
    meter, fake = opened(tmp_path, PACKAGE, FakeZone("intel-rapl:0:0", "dram", watts=0.0))
    assert joules(meter, fake, 2.0) == pytest.approx(200.0, abs=0.2)


@pytest.mark.parametrize(
    ("access", "said"),
    [
        ("readable", ""),
        (
            "root only",
            r"readable by root only \(CVE-2020-8694.*run `sudo chmod -R a\+r /sys/devices/virtual/powercap",
        ),
        (
            "masked",
            r"hidden from this container \(GHSA-jq35-85cj-fj4p: .*`--security-opt systempaths=unconfined` \(Docker\)"
            r" or `--security-opt unmask=/sys/devices/virtual/powercap` \(Podman\)",
        ),
        ("absent", "There are no RAPL counters at .*virtual machines and most containers hide them"),
    ],
)
def test_what_may_be_read_decides_and_is_told(tmp_path: Path, access: Access, said: str) -> None:
    """Readable counters are read; locked, masked and absent ones are each refused with their own remedy."""
    clock = VirtualClock()
    fake = FakeRapl(tmp_path / "powercap", PACKAGE, clock=clock)
    fake.become(access)
    if access == "readable":
        assert joules(open_rapl(root=fake.root, read=fake.read, clock=clock), fake, 2.0) == pytest.approx(
            200, abs=0.2
        )
        return
    with pytest.raises(MeasurementError, match=said):
        open_rapl(root=fake.root, read=fake.read, clock=clock)


def test_names_may_be_locked_too(tmp_path: Path) -> None:
    """Where not even the names can be read, the remedy is the same."""
    fake = FakeRapl(tmp_path / "powercap", PACKAGE, clock=VirtualClock())

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(MeasurementError, match=r"readable by root only \(CVE-2020-8694"):
        open_rapl(root=fake.root, read=refuse)


@pytest.mark.parametrize(("access", "said"), [("root only", "Permission denied"), ("masked", "No such file")])
def test_counters_lost_within_a_run_cost_their_windows(tmp_path: Path, access: Access, said: str) -> None:
    """Counters locked or hidden in the middle of a window, and before one, are told; closing works."""
    meter, fake = opened(tmp_path / "powercap", PACKAGE)
    assert joules(meter, fake, 1.0) == pytest.approx(100.0, abs=0.2)
    meter.start()
    fake.clock.pass_s(1.0)
    fake.become(access)
    reason = meter.stop().reason
    assert reason.startswith("rapl failed at the end of the window: [Errno ")
    assert said in reason
    meter.start()
    assert meter.stop().reason.startswith("rapl failed at the start of the window: [Errno ")
    meter.close()


def test_counters_that_come_back_are_read_again(tmp_path: Path) -> None:
    """A fault costs the windows it lies in and no later one."""
    meter, fake = opened(tmp_path / "powercap", PACKAGE)
    fake.become("root only")
    meter.start()
    fake.become("readable")
    fake.clock.pass_s(1.0)
    assert meter.stop().value is None
    assert joules(meter, fake, 1.0) == pytest.approx(100.0, abs=0.2)


def test_a_clock_that_is_set_back_costs_the_window(tmp_path: Path) -> None:
    """Joules over a window of no time are no joules, and the counter is not blamed."""
    meter, fake = opened(tmp_path / "powercap", PACKAGE)
    fake.clock.pass_s(10.0)
    meter.start()
    fake.clock.now_ns -= 2_000_000_000
    assert "by the clock, which stood still or was set back" in meter.stop().reason


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    watts=st.lists(st.integers(5, 400), min_size=4, max_size=4),
    offsets=st.lists(
        st.integers(0, 64_999_999_999), min_size=4, max_size=4, unique_by=lambda uj: uj // 4_000_000
    ),
    seconds=st.integers(1, 60),
)
def test_two_sockets_with_mirrored_dies_and_wraps_are_exact(
    tmp_path: Path, watts: list[int], offsets: list[int], seconds: int
) -> None:
    """Wherever the counters stand, joules are those of two dies and their DRAM, each once, to a tick."""
    range_uj = 65_000_000_000
    root = tmp_path / secrets.token_hex(8)
    names = ("package-0-die-0", "dram", "package-1-die-0", "dram", "package-0-die-1")
    folders = ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1", "intel-rapl:1:0", "intel-rapl:2")
    shown = [*zip(watts, offsets, strict=True), (watts[0], offsets[0])]
    meter, fake = opened(
        root,
        *(
            FakeZone(*zone, watts=w, offset_uj=o, range_uj=range_uj)
            for zone, (w, o) in zip(zip(folders, names, strict=True), shown, strict=True)
        ),
    )
    assert joules(meter, fake, seconds) == pytest.approx(sum(watts) * seconds, abs=sum(watts) * 0.0011 + 1e-5)


@pytest.mark.parametrize("zones", [None, (), (FakeZone("intel-rapl:0", "psys"),)])
def test_absent_counters_are_told(tmp_path: Path, zones: tuple[FakeZone, ...] | None) -> None:
    """No folder, an empty one, and one without packages all mean that there is no RAPL here."""
    root = tmp_path / "powercap"
    if zones is not None:
        root.mkdir()
        FakeRapl(root, *zones, clock=VirtualClock())
    with pytest.raises(MeasurementError, match=f"There are no RAPL counters at {root}: virtual machines and"):
        open_rapl(root=root)


def test_counters_that_stand_still_are_refused(tmp_path: Path) -> None:
    """Counters that a virtual machine shows but does not fill are refused (here: plain files)."""
    FakeRapl(tmp_path, PACKAGE, clock=VirtualClock())
    with pytest.raises(MeasurementError, match="RAPL counters package-0 stood still for 100 ms"):
        open_rapl(root=tmp_path)


def test_garbage_in_a_counter_is_told(tmp_path: Path) -> None:
    """A counter that is no number is refused with what was read."""
    FakeRapl(tmp_path, PACKAGE, clock=VirtualClock())
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("n/a")
    with pytest.raises(MeasurementError, match=r"RAPL at .* cannot be read: invalid literal"):
        open_rapl(root=tmp_path)

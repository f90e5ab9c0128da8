"""Grams of CO2 a kWh: codecarbon's table, without its network, its average for the unknown, or its output."""

from __future__ import annotations

import importlib.resources
import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from audited import HOOK
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmslim.errors import MeasurementError, SettingError
from pytest_llmslim.meters import intensity as room
from pytest_llmslim.meters.intensity import grams, intensity
from pytest_llmslim.records import Carbon

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, Any]]:
    """The file in codecarbon's package, read by itself."""
    path = importlib.resources.files("codecarbon") / "data/private_infra/global_energy_mix.json"
    return json.loads(path.read_text())


@pytest.mark.parametrize(("country", "low", "high"), [("FRA", 20, 100), ("USA", 250, 500), ("DEU", 250, 500)])
def test_countries_have_the_figure_of_the_file(
    country: str, low: float, high: float, table: dict[str, dict[str, Any]]
) -> None:
    """Nuclear France is far below coal-burning Germany, in grams a kWh, and the source names release and year."""
    carbon = intensity(country)
    assert carbon.g_per_kwh == pytest.approx(table[country]["carbon_intensity"], rel=1e-9)
    assert low < carbon.g_per_kwh < high
    assert carbon.country == country
    assert carbon.source == f"codecarbon {_version()}, electricity of {table[country]['year']}"


def _version() -> str:
    return importlib.import_module("codecarbon").__version__


def test_every_country_of_the_table_has_a_figure_or_is_refused(table: dict[str, dict[str, Any]]) -> None:
    """No country comes out as the world's average by mistake, and none as free of emissions."""
    free = [code for code in table if table[code]["carbon_intensity"] <= 0]
    for code in set(table) - set(free):
        assert intensity(code).g_per_kwh == pytest.approx(table[code]["carbon_intensity"], rel=1e-6)
    for code in free:
        with pytest.raises(SettingError, match="no electricity is free of emissions; name another country"):
            intensity(code)


@pytest.mark.parametrize(
    ("country", "meant"), [("GER", "DEU (Germany)"), ("FRN", "FRA (France)"), ("USB", "USA (United States)")]
)
def test_an_unknown_code_is_told_with_what_was_meant(country: str, meant: str) -> None:
    """Not the world's average, as from codecarbon itself, but the option by its name, with codes that look alike."""
    with pytest.raises(SettingError) as caught:
        intensity(country)
    text = str(caught.value)
    assert text.startswith(
        "--llm-country is an ISO 3166 code of three capitals for which codecarbon has a figure"
    )
    assert f"got {country!r}; did you mean " in text
    assert meant in text
    assert text.endswith(")?")


def test_a_code_like_no_other_is_told_with_an_example() -> None:
    """Nothing is guessed where nothing is close."""
    with pytest.raises(SettingError, match="got 'XQZ'; FRA is France, for instance"):
        intensity("XQZ")


def test_a_missing_codecarbon_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence that names option, cause and remedy, and the logger is as before."""
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    monkeypatch.setattr(logging.getLogger("codecarbon"), "disabled", False)
    expected = (
        r"^--llm-country FRA needs codecarbon's table of carbon intensities, and codecarbon does not load "
        r"\(import of codecarbon halted.*\); install it, or leave --llm-country away\.$"
    )
    with pytest.raises(MeasurementError, match=expected):
        intensity("FRA")
    assert logging.getLogger("codecarbon").disabled is False


def test_a_table_without_years_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older release may not say of when its figures are."""
    monkeypatch.setattr(room, "_codecarbon", lambda: ("3.9", None, {"FRA": {"country_name": "France"}}))
    monkeypatch.setattr(room, "_kg_per_kwh", lambda emissions, country, name: 0.05)
    assert intensity("FRA") == Carbon("FRA", 50.0, "codecarbon 3.9")


SCRIPT = (
    HOOK
    + """
import os
from pytest_llmslim.meters.intensity import intensity
assert 50 < intensity("FRA").g_per_kwh < 60
assert not seen, seen
"""
)


def test_neither_network_nor_output_nor_file(tmp_path: Path) -> None:
    """In a process of its own: no address is asked for, nothing is written, printed or left behind."""
    config = "[codecarbon]\nforce_carbon_intensity_g_co2e_kwh = 9999\nelectricitymaps_api_token = x\n"
    (tmp_path / ".codecarbon.config").write_text(config)
    root = os.path.dirname(os.path.dirname(os.path.dirname(room.__file__)))
    hostile = {
        "CODECARBON_FORCE_CARBON_INTENSITY_G_CO2E_KWH": "9999",
        "CODECARBON_ELECTRICITYMAPS_API_TOKEN": "x",
    }
    ran = subprocess.run(
        [sys.executable, "-B", "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, **hostile, "PYTHONPATH": root, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == [".codecarbon.config"]


@given(joules=st.floats(1e-6, 1e12), g_per_kwh=st.floats(1, 1500))
def test_grams_are_proportional(joules: float, g_per_kwh: float) -> None:
    """A kWh is 3.6 million joules, and twice the joules are twice the grams."""
    carbon = Carbon("FRA", g_per_kwh, "table")
    assert grams(3.6e6, carbon) == pytest.approx(g_per_kwh)
    assert grams(joules, carbon) == pytest.approx(g_per_kwh * joules / 3600 / 1000)
    assert grams(2 * joules, carbon) == pytest.approx(2 * grams(joules, carbon))


def test_grams_agree_with_codecarbon() -> None:
    """The same energy through codecarbon's own calculator."""
    emissions = importlib.import_module("codecarbon.core.emissions")
    source = importlib.import_module("codecarbon.input").DataSource()
    energy = importlib.import_module("codecarbon.core.units").Energy.from_energy(kWh=1234.5 / 3.6e6)
    place = importlib.import_module("codecarbon.external.geography").GeoMetadata("DEU", "Germany")
    kilograms = emissions.Emissions(source).get_private_infra_emissions(energy, place)
    assert grams(1234.5, intensity("DEU")) == pytest.approx(1000 * kilograms, rel=1e-9)

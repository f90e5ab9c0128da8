"""Grams of CO2 equivalent a kWh of a country's electricity, from the table that comes with codecarbon.

The table holds averages over a year; no network is used, and no configuration of codecarbon is read.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any, Final

from pytest_llmslim.errors import MeasurementError, SettingError
from pytest_llmslim.meters.carbon import JOULES_PER_KWH, silence
from pytest_llmslim.meters.window import words
from pytest_llmslim.records import Carbon

if TYPE_CHECKING:
    from collections.abc import Mapping

SUGGESTIONS: Final = 3


def intensity(country: str) -> Carbon:
    """The carbon intensity of a country's electricity.

    Takes half a second, in which pandas is imported and codecarbon looks for nvidia-smi and rocm-smi.

    Args:
        country: ISO 3166-1 alpha-3, e.g. `FRA`.

    Raises:
        SettingError: codecarbon has no figure for that code; the message names similar ones.
        MeasurementError: codecarbon is missing or its table cannot be read.
    """
    with silence():
        try:
            version, emissions, table = _codecarbon()
        except Exception as error:  # a foreign library, its data files, and pandas behind it
            raise MeasurementError(
                f"--llm-country {country} needs codecarbon's table of carbon intensities, and codecarbon does "
                f"not load ({words(error)}); install it, or leave --llm-country away."
            ) from error
        if country not in table:
            raise SettingError(_unknown(country, table))
        entry = table[country]
        grams_per_kwh = round(1000 * _kg_per_kwh(emissions, country, entry["country_name"]), 6)
    if grams_per_kwh <= 0:
        raise SettingError(
            f"--llm-country {country}: codecarbon's table says {grams_per_kwh:g} g CO2e a kWh, and no electricity "
            "is free of emissions; name another country, or leave --llm-country away."
        )
    year = f", electricity of {entry['year']}" if "year" in entry else ""
    return Carbon(country, grams_per_kwh, f"codecarbon {version}{year}")


def grams(joules: float, carbon: Carbon) -> float:
    """Grams of CO2 equivalent of some joules: J / (3.6 * 10^6 J/kWh) * g/kWh; an estimate, however J was had."""
    return joules / JOULES_PER_KWH * carbon.g_per_kwh


def _codecarbon() -> tuple[str, Any, Mapping[str, Mapping[str, Any]]]:
    """Its version, its calculator without a token for any service, and the countries that it knows."""
    version = importlib.import_module("codecarbon").__version__
    source = importlib.import_module("codecarbon.input").DataSource()
    emissions = importlib.import_module("codecarbon.core.emissions").Emissions(source)
    return version, emissions, source.get_global_energy_mix_data()


def _kg_per_kwh(emissions: Any, country: str, name: str) -> float:  # noqa: ANN401  # codecarbon's own class
    energy = importlib.import_module("codecarbon.core.units").Energy.from_energy(kWh=1)
    place = importlib.import_module("codecarbon.external.geography").GeoMetadata(country, name)
    return float(emissions.get_private_infra_emissions(energy, place))


def _unknown(country: str, table: Mapping[str, Mapping[str, Any]]) -> str:
    """What to say of a code for which codecarbon itself would take the world's average."""
    named = [code for code in table if table[code]["country_name"].upper().startswith(country)]
    close = difflib.get_close_matches(country, table, n=SUGGESTIONS)
    found = list(dict.fromkeys([*named, *close]))[:SUGGESTIONS]
    meant = ", ".join(f"{code} ({table[code]['country_name']})" for code in found)
    return (
        f"--llm-country is an ISO 3166 code of three capitals for which codecarbon has a figure, got {country!r}; "
        + (f"did you mean {meant}?" if meant else "FRA is France, for instance.")
    )

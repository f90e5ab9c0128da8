"""Options, environment variables and ini values, from one table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_llmslim import settings
from pytest_llmslim.errors import SettingError

GOOD = {
    "model": "gpt2",
    "recipe": "int4",
    "profile": "0.3:0.7",
    "text": "words.txt",
    "tokens": "512",
    "window": "64",
    "stride": "32",
    "bos": "never",
    "eval": "arc_challenge",
    "limit": "40",
    "data": "tasks",
    "cache": "answers",
    "quality": "perplexity",
    "slices": "code",
    "rounds": "8",
    "max-rounds": "80",
    "regression": "3%",
    "resolve": "12%",
    "quality-regression": "2%",
    "energy": "net",
    "country": "FRA",
    "anchor": "true",
    "timeout": "60",
    "calibrate": "true",
    "models-map": "hub",
    "published": "true",
    "ablate": "true",
    "save": "made",
    "conformance": "rtn",
    "device": "cpu",
    "dtype": "bfloat16",
    "threads": "2",
    "seed": "7",
    "max-perplexity-increase": "3%",
    "max-accuracy-drop": "2%",
    "max-time-increase": "10%",
    "max-energy-increase": "5%",
    "max-opt": "0.9",
    "gate-estimated": "true",
    "strict": "true",
    "baseline": "stored",
    "update": "true",
    "require-baseline": "true",
    "results": "out",
    "resume": "true",
    "report": "report.html",
    "markdown": "report.md",
    "csv": "figures.csv",
    "json": "run.json",
    "trust-remote-code": "true",
}

BAD = [
    ("tokens", "many", r"--llm-tokens is a whole number, got 'many'\."),
    ("tokens", "1", r"--llm-tokens is at least 2, got 1\."),
    ("rounds", "0", r"--llm-rounds is at least 1, got 0\."),
    ("limit", "0", r"--llm-limit is at least 1, got 0\."),
    ("max-accuracy-drop", "0.02", "--llm-max-accuracy-drop is a percentage"),
    ("seed", "-1", r"--llm-seed is at least 0, got -1\."),
    ("bos", "maybe", r"--llm-bos is one of auto, always, never, got 'maybe'\."),
    ("dtype", "int8", r"--llm-dtype is one of float32, bfloat16, float16, got 'int8'\."),
    ("device", "tpu", r"--llm-device is cpu, cuda, cuda:N or auto, got 'tpu'\."),
    ("energy", "idle", r"--llm-energy is one of gross, net, got 'idle'\."),
    ("country", "France", r"--llm-country is an ISO 3166 code of three capitals, e\.g\. FRA, got 'France'\."),
    ("timeout", "0", r"--llm-timeout is a number above 0, got '0'\."),
    ("max-opt", "nan", r"--llm-max-opt is a number above 0, got 'nan'\."),
    ("max-opt", "-1", r"--llm-max-opt is a number above 0, got '-1'\."),
    ("max-perplexity-increase", "0.03", "--llm-max-perplexity-increase is a percentage"),
    ("profile", "fast", "--llm-profile"),
    ("profile", "0.5:0.6", "--llm-profile"),
    ("strict", "perhaps", r"--llm-strict is true or false, got 'perhaps'\."),
    ("text", " ", r"--llm-text needs a value, got an empty text\."),
]


@pytest.fixture
def resolved(pytester):
    """Gives one setting of a run with these arguments and ini lines."""

    def resolve(name, *args, ini=""):
        pytester.makeini("[pytest]\n" + ini)
        # Its options are in the way of nothing, but it starts eight subprocesses.
        config = pytester.parseconfigure("-p", "no:benchmark", *args)
        return settings.resolve(config, os.environ).sources[name]

    return resolve


def test_every_option_has_an_example_here():
    """The tables of this file cover every option."""
    assert set(GOOD) == set(settings.BY_NAME)


@pytest.mark.parametrize("name", GOOD)
def test_a_setting_comes_from_command_line_then_environment_then_ini(name, resolved, monkeypatch):
    """Each setting works from all three places, and the nearer place wins."""
    option, value = settings.BY_NAME[name], GOOD[name]
    parsed = settings.parse_value(option, value, "here")
    expected = (parsed,) if option.kind == "list" else parsed
    ini = f"{option.ini} = {value}\n"
    assert resolved(name) == (option.default, "default")
    assert resolved(name, ini=ini) == (expected, "ini")
    monkeypatch.setenv(option.env, value)
    assert resolved(name, ini=ini) == (expected, option.env)
    args = [option.flag] if option.kind == "flag" else [option.flag, value]
    expected = [parsed] if option.kind == "list" else parsed
    assert resolved(name, *args, ini=ini) == (expected, "command line")


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_a_value_that_does_not_fit_is_refused_by_name(name, text, message):
    """The error names the option, the rule and what was got."""
    with pytest.raises(SettingError, match=message):
        settings.parse_value(settings.BY_NAME[name], text, f"--llm-{name}")


def test_a_bad_option_is_a_usage_error(pytester):
    """Pytest ends with exit code 4 before anything runs, and one sentence."""
    result = pytester.runpytest("--llm-tokens", "many")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llm-tokens is a whole number, got 'many'.*"])


def test_a_bad_environment_variable_is_a_usage_error(pytester, monkeypatch):
    """The variable is named, not the option."""
    monkeypatch.setenv("LLMSLIM_TOKENS", "many")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*LLMSLIM_TOKENS is a whole number, got 'many'.*"])


def test_a_flag_can_be_switched_off_again(resolved, monkeypatch):
    """`--no-llm-strict` wins over an ini value of true."""
    assert resolved("strict", "--no-llm-strict", ini="llm_strict = true\n") == (False, "command line")


def test_lists_split_at_commas_and_lines_but_not_inside_brackets(resolved):
    """A recipe's own commas do not end it."""
    found = resolved("recipe", ini="llm_recipe =\n  int8, magnitude(pattern=2:4)\n  a(x=1,y=2)\n")
    assert found.value == ("int8", "magnitude(pattern=2:4)", "a(x=1,y=2)")


def test_the_header_shows_what_is_not_default_with_its_source(pytester, monkeypatch):
    """Nothing is shown in a plain run; otherwise value and source."""
    pytester.makepyfile("def test_nothing(): pass")
    assert "llmslim" not in "".join(
        line for line in pytester.runpytest().outlines if not line.startswith("plugins")
    )
    monkeypatch.setenv("LLMSLIM_SEED", "7")
    result = pytester.runpytest("--llm-profile", "energy")
    result.stdout.fnmatch_lines(["llmslim: profile: energy (command line), seed: 7 (LLMSLIM_SEED)"])


def test_help_names_every_option(pytester):
    """`pytest --help` lists each option in one group, with its default."""
    text = pytester.runpytest("--help").stdout.str()
    assert "compressed language models (pytest-llmslim)" in text
    for option in settings.OPTIONS:
        assert option.flag in text
        assert option.ini in text
    assert "Default: balanced." in text


def test_relative_paths(pytester, monkeypatch):
    """From the command line a folder lies where the user stands, otherwise beside the ini file."""
    pytester.makeini("[pytest]\nllm_baseline = stored\nllm_text = words.txt\n")
    below = pytester.mkdir("sub")
    monkeypatch.chdir(below)
    found = settings.resolve(pytester.parseconfigure("-c", "../tox.ini", "--llm-results", "out"))
    assert found.baseline == pytester.path / "stored"
    assert found.results == below / "out"
    assert found.text == pytester.path / "words.txt"


def test_thresholds_of_a_marker_win():
    """What a test will not ship is not weakened by the command line."""
    values = {option.name: settings.Sourced(option.default, "default") for option in settings.OPTIONS}
    values["max-opt"] = settings.Sourced(0.5, "command line")
    found = settings.Settings(values, Path(), Path()).thresholds(max_perplexity_increase="3%")
    assert found.max_perplexity_increase == pytest.approx(0.03)
    assert found.max_opt == 0.5
    assert settings.Settings(values, Path(), Path()).thresholds(max_opt=2).max_opt == 2

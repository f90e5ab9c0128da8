"""The table of options: name, kind, default and meaning of every setting, and nothing else.

Imported in every pytest run, so it holds plain tuples and imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Option:
    """One setting. `kind` is `text`, `list`, `path`, `int`, `flag`, `percent` or `number`.

    Written by hand: this class is made in every pytest run, and a dataclass would cost a millisecond of it.
    """

    def __init__(self, name: str, kind: str, default: object, metavar: str, help: str) -> None:
        self.name, self.kind, self.default, self.metavar, self.help = name, kind, default, metavar, help

    @property
    def flag(self) -> str:
        """As written on the command line."""
        return f"--llm-{self.name}"

    @property
    def ini(self) -> str:
        """As written in an ini file."""
        return f"llm_{self.name.replace('-', '_')}"

    @property
    def env(self) -> str:
        """As written in the environment."""
        return f"LLMSLIM_{self.name.replace('-', '_').upper()}"

    @property
    def dest(self) -> str:
        """Attribute on the parsed options."""
        return self.ini


EMBEDDED_MODELS = ("embedded:gpt2", "embedded:llama")

# Help texts: what it does, in one sentence, values in plain words; the default is appended.
OPTIONS: tuple[Option, ...] = (
    Option(
        "model",
        "list",
        EMBEDDED_MODELS,
        "MODEL",
        "Reference model: Hugging Face id, folder, .gguf file or embedded:NAME; repeatable.",
    ),
    Option(
        "recipe",
        "list",
        (),
        "RECIPE",
        "Compression steps joined by +, e.g. ah90+int4; narrows or replaces a suite's list; repeatable.",
    ),
    Option(
        "profile",
        "text",
        "balanced",
        "PROFILE",
        "Weights of time and energy in opt: balanced, energy, runtime, or ALPHA:BETA.",
    ),
    Option(
        "text",
        "path",
        None,
        "FILE",
        "UTF-8 text on which quality is measured; without it the grammar's text for embedded models "
        "and Python's own reference manual for others.",
    ),
    Option(
        "tokens",
        "int",
        None,
        "N",
        "Tokens of the text to score; 8192, or 32 documents of 255 for embedded models.",
    ),
    Option(
        "window",
        "int",
        None,
        "N",
        "Tokens in a forward pass, BOS included; 256 for embedded models, else 512.",
    ),
    Option("stride", "int", None, "N", "Overlap windows and score only the last N tokens of each."),
    Option(
        "bos",
        "text",
        "auto",
        "WHEN",
        "Start every window with the BOS token: always, never, or auto (as the tokenizer does).",
    ),
    Option(
        "eval",
        "list",
        (),
        "EVAL",
        "Evaluate this too, e.g. arc_challenge, sms_spam, generation, latency or any task of lm-eval; repeatable.",
    ),
    Option("limit", "int", None, "N", "Questions of a task at most, a fixed sample; without it all of them."),
    Option(
        "data",
        "path",
        None,
        "DIR",
        "Folder of local tasks, so that they need no hub; docs/evaluations.md has its layouts.",
    ),
    Option(
        "cache",
        "path",
        None,
        "DIR",
        "Keep what models answered there: the reference is asked once, an interrupted run goes on.",
    ),
    Option(
        "quality",
        "list",
        (),
        "MEASURE",
        "What Q of opt is the mean of: perplexity, or a name of --llm-eval; repeatable. Without it perplexity and "
        "every task whose reference is above chance.",
    ),
    Option(
        "slices",
        "list",
        (),
        "SLICE",
        "Perplexity of a kind of text by itself: code, mathematics, languages, long, all, or a file; repeatable.",
    ),
    Option(
        "rounds",
        "int",
        None,
        "N",
        "Time exactly N pairs of reference and candidate, instead of as many as a decision takes.",
    ),
    Option(
        "max-rounds",
        "int",
        None,
        "N",
        "Most pairs to time while a gate is undecided; 160, or 80 when a forward pass takes half a second.",
    ),
    Option("device", "text", "auto", "DEVICE", "cpu, cuda, cuda:N, or auto."),
    Option("dtype", "text", "float32", "DTYPE", "In which the reference runs: float32, bfloat16 or float16."),
    Option("threads", "int", 1, "N", "CPU threads of the models; gates are steadiest with one."),
    Option("seed", "int", 0, "N", "Seed of everything random: order of pairs, padding, sampling in methods."),
    Option(
        "max-perplexity-increase", "percent", None, "PCT", "Fail when perplexity grows by more, e.g. 3%%."
    ),
    Option("max-time-increase", "percent", None, "PCT", "Fail when time grows by more, e.g. 10%%."),
    Option("max-energy-increase", "percent", None, "PCT", "Fail when energy grows by more, e.g. 10%%."),
    Option(
        "max-accuracy-drop",
        "percent",
        None,
        "PCT",
        "Fail when the metric of an evaluation gets worse by more than this share, e.g. 2%%.",
    ),
    Option("max-opt", "number", None, "SCORE", "Fail when opt is higher; 1 is the reference itself."),
    Option(
        "regression",
        "percent",
        0.02,
        "PCT",
        "An increase of time, energy or opt over the baseline beyond this fails, once it is sure.",
    ),
    Option(
        "resolve",
        "percent",
        0.10,
        "PCT",
        "The largest increase of time, energy or opt over the baseline that a passed test may have missed.",
    ),
    Option(
        "quality-regression",
        "percent",
        0.01,
        "PCT",
        "An increase of the perplexity ratio over the baseline beyond this fails.",
    ),
    Option(
        "energy",
        "text",
        "gross",
        "POLICY",
        "gross: all energy that the source counts; net: less the idle power, measured first.",
    ),
    Option(
        "country",
        "text",
        None,
        "ISO3",
        "Show grams of CO2 for this country's electricity, e.g. FRA; always an estimate.",
    ),
    Option("gate-estimated", "flag", False, "", "Gate estimated energy too, not only measured energy."),
    Option("strict", "flag", False, "", "Fail on what could not be decided or compared, instead of warning."),
    Option("baseline", "path", "baselines", "DIR", "Where stored baselines are."),
    Option("update", "flag", False, "", "Write what was measured as the new baseline."),
    Option("anchor", "flag", False, "", "With --llm-update: take what was measured as the new anchor, too."),
    Option("require-baseline", "flag", False, "", "Fail when a measurement has no baseline."),
    Option(
        "ablate",
        "flag",
        False,
        "",
        "Measure the steps of every recipe alone, in order and left out, too, and print what each contributes.",
    ),
    Option(
        "save",
        "path",
        None,
        "DIR",
        "Save every candidate that a recipe builds as a model folder there; it reloads to equal logits.",
    ),
    Option("results", "path", "llm-results", "DIR", "Where results.jsonl, run.json and summary.json go."),
    Option(
        "resume",
        "flag",
        False,
        "",
        "Go on with the run in --llm-results that was stopped: what it measured is taken from there.",
    ),
    Option("report", "path", None, "FILE", "Write an HTML report, one file that needs no network."),
    Option(
        "markdown",
        "path",
        None,
        "FILE",
        "Write what changed against the baselines as Markdown, e.g. for a pull request; on GitHub it is also in the "
        "summary of the job.",
    ),
    Option("csv", "path", None, "FILE", "Write a table of all figures, a row a candidate, as CSV."),
    Option("json", "path", None, "FILE", "Write the whole run as one JSON document with a published schema."),
    Option(
        "timeout", "number", None, "SECONDS", "Fail a test that takes longer, e.g. when a candidate hangs."
    ),
    Option(
        "calibrate",
        "flag",
        False,
        "",
        "Measure the models against themselves instead of running tests, and print limits that hold here.",
    ),
    Option(
        "conformance",
        "list",
        (),
        "NAME",
        "Put this method (all: every one) through the invariants instead of running tests; repeatable.",
    ),
    Option(
        "models-map",
        "text",
        "embedded",
        "MAP",
        "Models of suites/paper: hub, embedded, or a TOML or JSON file from the paper's names to models.",
    ),
    Option(
        "published",
        "flag",
        False,
        "",
        "Score the paper's published tables and draw its figures instead of running tests.",
    ),
    Option("trust-remote-code", "flag", False, "", "Run code that comes with a model."),
)

BY_NAME: Mapping[str, Option] = {option.name: option for option in OPTIONS}

CHOICES: Mapping[str, tuple[str, ...]] = {
    "bos": ("auto", "always", "never"),
    "energy": ("gross", "net"),
    "dtype": ("float32", "bfloat16", "float16"),
}

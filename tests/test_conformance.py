"""The invariants: what is right passes, every fault is found by the one that should find it, and how they are run."""

from __future__ import annotations

from dataclasses import replace

import broken_methods as broken
import pytest
import torch
from hypothesis import strategies as st

from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.conformance import INVARIANTS, invariants_of, kind_of
from pytest_llmslim.conformance import broken as search
from pytest_llmslim.conformance.broken import BrokenInvariantError, explore, require
from pytest_llmslim.conformance.subject import Subject, check_waives, resolve
from pytest_llmslim.errors import CompressionError, RecipeError, SettingError
from pytest_llmslim.registry import DISTIL, PRUNE, QUANTIZE, RECOVER, SPARSIFY, Registry, Spec
from pytest_llmslim.strategies import Matrix, weights

REGISTRY = Registry(BUILTIN_METHODS)


@pytest.fixture(autouse=True)
def _little_shrinking(monkeypatch):
    """A counter-example is made smaller for a second."""
    monkeypatch.setattr(search, "SHRINKING_S", 1.0)


def put_through(method, stage, name, **changes):
    """Run one invariant on a method that the registry does not know."""
    subject = replace(Subject.of_method(method), stage=stage, **changes)
    kind = kind_of(stage)
    invariants_of(kind)[name](kind(), subject)


FAULTY = [
    (broken.Rounds(fault="floors"), QUANTIZE, "half-a-step", r"a weight moves by half a step at most, .*\n"),
    (
        broken.Rounds(fault="scale_of_another_row"),
        QUANTIZE,
        "half-a-step",
        r"\nweights: Matrix \d+ x \d+ float",
    ),
    (broken.Rounds(fault="clips"), QUANTIZE, "idempotent", "a second time changes nothing"),
    (broken.Rounds(fault="one_level_more_below"), QUANTIZE, "sign-equivariant", "-W becomes the negative"),
    (broken.Rounds(fault="too_many_levels"), QUANTIZE, "levels", "3 bits are 8 levels, got 9 in row "),
    (broken.Rounds(fault="fixed_step"), QUANTIZE, "scale-equivariant", "W becomes .* times what W becomes"),
    (broken.Rounds(fault="no_zero"), QUANTIZE, "zeros-stay", "zeros stay zero, got some filled"),
    (
        broken.Rounds(fault="fewer_bits_for_more"),
        QUANTIZE,
        "monotone-in-bits",
        "got .* with 3 bits, .* with 4",
    ),
    (broken.Rounds(fault="overflows"), QUANTIZE, "weights-finite", "finite"),
    (broken.Mispacks(), QUANTIZE, "pack-and-unpack", "codes pack to the bytes they came from"),
    (
        broken.Zeroes(fault="one_more"),
        SPARSIFY,
        "ratio-exact",
        r"0\.\d+ of \d+ weights, or of the \d+ of each row",
    ),
    (
        broken.Zeroes(fault="last_row"),
        SPARSIFY,
        "pattern-exact",
        r"2 of every 4 weights stay, got 4 in row 0",
    ),
    (broken.Zeroes(fault="touches"), SPARSIFY, "kept-untouched", "weights that are kept are not changed"),
    (broken.Zeroes(fault="again"), SPARSIFY, "idempotent", r"(?s)weights: .*once: .*twice: "),
    (broken.Zeroes(fault="signed"), SPARSIFY, "monotone-in-score", "so it is when 4 times as large"),
    (broken.Cuts(fault="nothing"), PRUNE, "fewer-parameters", "there are fewer parameters than"),
    (
        broken.Cuts(fault="config"),
        PRUNE,
        "config-agrees",
        r"got .*_proj.weight of \[64, 64\] where it says \[128",
    ),
    (broken.Cuts(fault="config"), PRUNE, "reloads", "a checkpoint can be saved and loaded, got"),
    (
        broken.Cuts(fault="columns"),
        PRUNE,
        "equal-to-masking",
        r"(?s)parts silenced.*masked: Matrix.*cut: Matrix",
    ),
    (broken.Cuts(fault="caches"), PRUNE, "generates", "generating with the cache"),
    (
        broken.Heals(fault="worse"),
        RECOVER,
        "error-of-linears-never-grows",
        "after magnitude does not grow from",
    ),
    (broken.Heals(fault="worse"), RECOVER, "divergence-never-grows", "after magnitude does not grow from"),
    (
        broken.Heals(fault="base"),
        RECOVER,
        "base-untouched",
        r"(?s)as magnitude left them, got .*before: Matrix 64",
    ),
    (broken.Teaches(fault="grows"), DISTIL, "no-more-parameters", "a student has no more parameters than"),
    (
        broken.Teaches(fault="spoils"),
        DISTIL,
        "training-helps",
        "training makes something smaller in 24 steps, got",
    ),
    (broken.Careless("draws"), None, "deterministic", "one seed gives one result, got other weights"),
    (
        broken.Careless("changes_reference"),
        None,
        "reference-untouched",
        r"(?s)got another model.*before: Matrix",
    ),
    (broken.Careless("changes_text"), None, "reference-untouched", "the calibration text is not changed"),
    (broken.Careless("changes_config"), None, "reference-untouched", "the reference's config is not changed"),
    (broken.Careless("changes_mode"), None, "reference-untouched", "the reference stays in eval mode"),
    (broken.Careless("narrows"), None, "dtype-and-device-kept", "stay in torch.float32, got torch.bfloat16"),
    (broken.Careless("wants_gradients"), None, "gradients-off", "no parameter wants gradients, got 1"),
    (broken.Careless("trains"), None, "eval-mode", "q_proj in training mode"),
    (broken.Careless("nothing"), None, "changes-something", "nothing was compressed: all"),
    (
        broken.Careless("overflows"),
        None,
        "logits-finite",
        r"logits are finite, got NaN or infinity\ndrawn: Tiny",
    ),
    (
        broken.Careless("takes_nan"),
        None,
        "nan-weights-refused",
        r"accepted in .*\nweights: Matrix 1 x 1 .*\n +nan",
    ),
    (broken.Careless("crashes"), None, "every-family", r"got KeyError at .*broken_methods.py:\d+: 'q_norm'"),
    (broken.Careless("sentence"), None, "sentence-begins-with-its-name", "got 'done'"),
]


@pytest.mark.parametrize(
    ("method", "stage", "name", "message"), FAULTY, ids=lambda each: getattr(each, "fault", None)
)
def test_each_fault_is_found(method, stage, name, message):
    """By the invariant that should find it, with a message that says what is wrong."""
    with pytest.raises(pytest.fail.Exception, match=rf"^{type(method).__name__} breaks {name}: ") as caught:
        put_through(method, stage, name)
    caught.match(message)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("takes_all", "share is refused when it is NaN, got no RecipeError"),
        ("wrong_error", "share=nan is refused with a RecipeError, got ValueError: nan"),
        ("nameless", "share=nan is refused in a sentence that names the method and the parameter, got"),
    ],
)
def test_parameters_without_a_rule_are_found(fault, message):
    """Values that no method can use are taken, or refused in another way than the rest."""
    preset = (("fault", fault),)
    spec = Spec("Careless", "broken_methods:Careless", "", ("share",), preset=preset)
    subject = resolve("Careless", Registry([spec]))
    with pytest.raises(pytest.fail.Exception, match=f"^Careless breaks bad-parameters-refused: {message}"):
        invariants_of(kind_of(None))["bad-parameters-refused"](kind_of(None)(), subject)


SOUND = [
    (broken.Rounds(), QUANTIZE), (broken.Zeroes(), SPARSIFY), (broken.Cuts(), PRUNE),
    (broken.Heals(), RECOVER), (broken.Teaches(), DISTIL),
]  # fmt: skip
ASKED = {name for method, stage, name, _ in FAULTY}


@pytest.mark.parametrize(("method", "stage"), SOUND, ids=lambda each: type(each).__name__)
def test_without_a_fault_all_of_these_invariants_are_kept(method, stage):
    """So that it is the fault which was found."""
    for name in invariants_of(kind_of(stage)):
        if name in ASKED - {"sentence-begins-with-its-name"}:
            try:
                put_through(method, stage, name)
            except pytest.skip.Exception:
                continue


def test_every_invariant_has_a_fault_that_it_finds():
    """But for saving, whose own tests break it, and for parameters, see above."""
    assert {"survives-save-and-load", "bad-parameters-refused"} == set(INVARIANTS) - ASKED


def test_every_invariant_says_what_it_is():
    """In plain words with hyphens, and one sentence."""
    assert all(name.replace("-", "").islower() and said.endswith(".") for name, said in INVARIANTS.items())


# The search -----------------------------------------------------------------------------------------------


def test_a_counter_example_is_small_and_printed():
    """The smallest matrix that fails, of simple numbers, below what was found."""

    def check(matrix):
        require(matrix.tensor.abs().max() < 3, "weights are small", weights=matrix)

    with pytest.raises(BrokenInvariantError) as caught:
        explore(weights(), check, 50)
    assert "weights are small\nweights: Matrix 1 x 1 float32, simple:\n  3" == str(caught.value)


def test_of_a_large_matrix_the_part_that_is_wrong_is_printed():
    """With where it begins; a small one as it is."""
    large = torch.arange(40.0)[None] * torch.ones(3, 1)

    with pytest.raises(BrokenInvariantError) as caught:
        require(False, "all is well", (2, 30), weights=large, small=Matrix(((1.0,),)))
    row = "  ".join(str(number) for number in range(24, 36))
    assert [
        "all is well",
        "weights from row 0, column 24 on, of 3 x 40: Matrix 3 x 12 float32:",
        *[f"  {row}"] * 3,
        "small: Matrix 1 x 1 float32:",
        "  1",
    ] == str(caught.value).splitlines()


def test_an_example_that_no_message_shows_is_added():
    """Whatever was drawn."""

    def check(drawn):
        require(drawn[1] < 5, "the number is small")

    with pytest.raises(BrokenInvariantError, match=r"^the number is small\ndrawn: 'x'\ndrawn: 5"):
        explore(st.tuples(st.just("x"), st.integers(0, 99)), check, 100)


def test_shrinking_ends_after_its_time(monkeypatch):
    """What failed within it is still reported, and nothing more is tried."""
    monkeypatch.setattr(search, "SHRINKING_S", 0.0)
    tried = []

    def check(number):
        tried.append(number)
        require(number < 10, f"below 10, got {number}")

    with pytest.raises(BrokenInvariantError, match=r"^below 10, got \d+"):
        explore(st.integers(0, 10**6), check, 100)
    assert 1 == sum(number >= 10 for number in tried)


def test_refusing_everything_breaks_an_invariant():
    """A method that takes nothing is not proven right; one refusal is no fault."""

    def refuse(_number):
        raise CompressionError("too narrow")

    with pytest.raises(BrokenInvariantError, match=r"got all refused, the last one with: too narrow$"):
        explore(st.integers(), refuse)
    explore(st.integers(), lambda number: number > 0 or refuse(number))


# Subjects -------------------------------------------------------------------------------------------------


def test_a_name_or_a_recipe_of_one_step_is_a_subject():
    """Fast parameters are set unless the recipe sets them; recovery stands alone here."""
    assert {"samples": 2} == resolve("wanda", REGISTRY).given
    assert {"samples": 5, "sparsity": 0.7} == resolve("wanda(samples=5,sparsity=0.7)", REGISTRY).given
    alone = resolve("eora(rank=3)", REGISTRY)
    assert ("eora(rank=3)", RECOVER, {"rank": 3, "samples": 2}) == (alone.title, alone.stage, alone.given)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rtm", r"there is no method 'rtm' \(did you mean rtn"),
        ("rtn(bit=4)", r"^rtn has no parameter 'bit'; it takes bits, group"),
        ("magnitude+rtn", r"there is no method 'magnitude\+rtn'"),
        ("magnitude()+rtn", r"one method at a time, got magnitude\(\)\+rtn; give it once a method"),
    ],
)
def test_what_is_no_subject_is_refused(name, message):
    """Unknown methods and parameters, and recipes of several steps."""
    with pytest.raises((RecipeError, SettingError), match=message):
        resolve(name, REGISTRY)


def test_an_instance_is_a_subject():
    """Its fields are its parameters, but for those that cannot be given."""
    subject = Subject.of_method(broken.Kept(0.25))

    assert ("Kept", ("share",)) == (subject.title, subject.parameters)
    assert 0.25 == subject.method().share
    assert 0.75 == subject.method(share=0.75).share


def test_widths_that_a_method_leaves_out_are_not_drawn():
    """On a CPU the 4-bit linears of bitsandbytes need 64 inputs."""
    assert 64 == resolve("nf4", REGISTRY).multiple
    assert 1 == resolve("rtn", REGISTRY).multiple


def test_heads_that_attend_to_one_token_are_made_for_who_needs_them():
    """ah90 finds nothing in random models."""
    assert resolve("ah90", REGISTRY).needs_sinks
    assert not resolve("rtn", REGISTRY).needs_sinks


def test_waivers_name_an_invariant_and_a_reason():
    """A word that is none would waive nothing without anybody noticing."""
    subject = resolve("rtn", REGISTRY)
    with pytest.raises(
        SettingError, match=r"^rtn waives the invariant 'half-step', which does not exist; known"
    ):
        check_waives(replace(subject, waives={"half-step": "no"}), tuple(INVARIANTS))
    with pytest.raises(SettingError, match=r"^rtn waives half-a-step and says no reason; give one$"):
        check_waives(replace(subject, waives={"half-a-step": " "}), tuple(INVARIANTS))


def test_what_is_waived_or_missing_is_skipped_with_the_reason():
    """And not run."""
    with pytest.raises(pytest.skip.Exception, match=r"^waived: it is only a test$"):
        put_through(
            broken.Careless("draws"), None, "deterministic", waives={"deterministic": "it is only a test"}
        )
    spec = Spec("far", "far_away:Far", "of another package", extra="far_away")
    subject = resolve("far", Registry([spec]))
    with pytest.raises(
        pytest.skip.Exception, match=r"needs the package far_away; run: pip install 'pytest-llmslim"
    ):
        invariants_of(kind_of(None))["deterministic"](kind_of(None)(), subject)


# Our own methods ------------------------------------------------------------------------------------------


def _once_each():
    """Names of ours, one of those that mean the same or are presets of another."""
    seen = {}
    for spec in BUILTIN_METHODS:
        seen.setdefault(spec.target, spec.name)
    return sorted(seen.values())


@pytest.fixture(scope="module")
def subjects():
    """Each made once, as they remember what they found out about a method."""
    return {name: resolve(name, REGISTRY) for name in _once_each()}


@pytest.mark.parametrize(
    ("method", "name"),
    [(name, each) for name in _once_each() for each in invariants_of(kind_of(REGISTRY.get(name).stage))],
    ids=lambda each: each,
)
def test_our_methods_keep_the_invariants(subjects, method, name):
    """But for those that they waive."""
    subject = subjects[method]
    check_waives(subject, tuple(INVARIANTS))
    kind = kind_of(subject.stage)
    invariants_of(kind)[name](kind(), subject)


OTHERWISE = ("rtn(bits=8,granularity=row)", "rtn(bits=3,group=7,symmetric=false)", "rtn(granularity=tensor)")


@pytest.mark.parametrize("recipe", OTHERWISE)
def test_round_to_nearest_keeps_them_on_other_grids(recipe):
    """What sets quantizers apart from other methods."""
    subject, kind, skipped = resolve(recipe, REGISTRY), kind_of(QUANTIZE), []
    for name in invariants_of(kind).keys() - invariants_of(kind_of(None)).keys():
        try:
            invariants_of(kind)[name](kind(), subject)
        except pytest.skip.Exception:
            skipped.append(name)
    assert (["sign-equivariant"] if "symmetric=false" in recipe else []) == skipped


# Runs -----------------------------------------------------------------------------------------------------

HALVES = """
    from dataclasses import dataclass

    from pytest_llmslim.methods import Applied
    from pytest_llmslim.models.blocks import Blocks


    @dataclass(frozen=True)
    class Halve:
        def compress(self, module, context):
            for linear in Blocks(module).linears().values():
                linear.weight.data.mul_(0.5)
            return Applied(module, "halve: every linear of a block was halved")
"""
CONFTEST = """
    import pytest

    from pytest_llmslim.registry import Spec


    @pytest.hookimpl(optionalhook=True)
    def pytest_llmslim_methods(config):
        return [Spec("halve", "halves:Halve", "halves", origin="here", waives={waives})]
"""


@pytest.fixture
def halves(pytester):
    """A project with a method that takes NaN, and a test that must not run."""
    pytester.makepyfile(halves=HALVES, test_mine="def test_mine(): raise AssertionError")
    pytester.syspathinsert()
    return lambda waives=(): pytester.makeconftest(CONFTEST.format(waives=repr(waives)))


def test_a_run_puts_named_methods_through(pytester, halves, heavy):
    """Methods of the conftest.py, a test each, instead of the project's tests; a broken invariant fails the run."""
    halves()
    result = pytester.runpytest("--llm-conformance", "halve", "-p", "no:benchmark", "-rf")

    assert 1 == result.ret
    result.assert_outcomes(passed=len(invariants_of(kind_of(None))) - 1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*halve breaks nan-weights-refused: weights that are not finite are refused, got them accepted in *",
            "weights: Matrix 1 x 1 float32, not finite:",
            "  nan",
            "FAILED conformance::test_invariant[[]halve-nan-weights-refused] - *",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_run_shows_what_is_waived(pytester, halves, heavy):
    """With the reason; -k chooses among invariants."""
    halves((("nan-weights-refused", "NaN stays NaN"),))
    result = pytester.runpytest(
        "--llm-conformance=halve", "-p", "no:benchmark", "-rs", "-k", "nan or eval-mode"
    )

    assert 0 == result.ret
    result.assert_outcomes(passed=1, skipped=1, deselected=len(invariants_of(kind_of(None))) - 2)
    result.stdout.fnmatch_lines(["*waived: NaN stays NaN"])


def test_a_run_takes_parameters_and_folders(pytester, halves, heavy):
    """A recipe of one step is a name too; a folder that is named gives its conftest.py only."""
    pytester.mkdir("tests")
    halves()
    pytester.path.joinpath("conftest.py").rename(pytester.path / "tests/conftest.py")
    asked = ("--llm-conformance=rtn(bits=3)", "--llm-conformance=halve", "-k", "eval-mode", "-v")
    result = pytester.runpytest("tests", *asked, "-p", "no:benchmark")

    result.assert_outcomes(passed=2, deselected=-2 + len(_all_of("rtn")) + len(invariants_of(kind_of(None))))
    result.stdout.fnmatch_lines(["conformance::test_invariant[[]rtn(bits=3)-eval-mode] PASSED *"])


def _all_of(name):
    return invariants_of(kind_of(REGISTRY.get(name).stage))


def test_all_is_every_method(pytester, halves, heavy):
    """Ours and those of others."""
    halves()
    result = pytester.runpytest("--llm-conformance=all", "--collect-only", "-q", "-p", "no:benchmark")
    wanted = sum(len(_all_of(spec.name)) for spec in BUILTIN_METHODS) + len(invariants_of(kind_of(None)))

    result.stdout.fnmatch_lines([f"{wanted} tests collected in *"])


@pytest.mark.parametrize(
    ("asked", "waives", "message"),
    [
        ("half", (), "ERROR: there is no method 'half' (did you mean halve*; known are ah, *"),
        (
            "halve",
            (("nan", "no"),),
            "ERROR: halve waives the invariant 'nan', which does not exist; known are *",
        ),
    ],
)
def test_what_cannot_run_is_a_usage_error(pytester, halves, heavy, asked, waives, message):
    """Before anything is collected."""
    halves(waives)
    result = pytester.runpytest("--llm-conformance", asked, "-p", "no:benchmark")

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines([message])


def test_a_class_in_a_test_file_is_put_through(pytester, halves, heavy):
    """By a recipe that conftest.py knows, or an instance; with waivers of its own."""
    halves()
    pytester.makepyfile(
        test_mine="""
        from halves import Halve
        from pytest_llmslim.conformance import MethodInvariants

        class TestByName(MethodInvariants):
            method = "halve"
            waives = (("nan-weights-refused", "NaN stays NaN"),)

        class TestInstance(MethodInvariants):
            method = Halve()

        class TestWrong(MethodInvariants):
            method = "halve"
            waives = (("nan", "no"),)
        """
    )
    result = pytester.runpytest("-p", "no:benchmark", "-rfE", "-k", "nan or eval or TestWrong")

    result.assert_outcomes(
        passed=2, skipped=1, failed=1, errors=len(invariants_of(kind_of(None))), deselected=20
    )
    result.stdout.fnmatch_lines(
        [
            "*halve waives the invariant 'nan', which does not exist*",
            "FAILED test_mine.py::TestInstance::test_nan_weights_refused - *",
        ]
    )


def test_workers_share_the_invariants(pytester, halves):
    """Under xdist every worker finds the conftest.py of the project and the same tests; warnings are no errors."""
    halves()
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    result = pytester.runpytest_subprocess(
        "--llm-conformance=halve", "-n1", "-p", "no:benchmark", "-k", "eval-mode or nan or gradients"
    )

    assert 1 == result.ret
    result.assert_outcomes(passed=2, failed=1)


def test_names_of_test_functions_do_not_matter(pytester, halves, heavy):
    """A project whose tests are called otherwise is put through all the same."""
    pytester.makeini(
        "[pytest]\npython_functions = check_*\npython_files = check_*.py\nfilterwarnings = error\n"
    )
    result = pytester.runpytest("--llm-conformance=magnitude", "-k", "eval-mode", "-p", "no:benchmark")

    assert 0 == result.ret
    result.assert_outcomes(passed=1, deselected=len(_all_of("magnitude")) - 1)


def test_matrices_of_many_rows_are_cut_when_printed():
    """A counter-example stays readable."""
    with pytest.raises(BrokenInvariantError) as caught:
        require(False, "no", weights=torch.zeros(40, 40), small=Matrix(((1.0,),)))
    assert 12 == len(str(caught.value).splitlines())

"""Names lead to models; whatever cannot be measured is refused in one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, save_tiny, tiny_model, tiny_tokenizer, tiny_tokens
from transformers import BitsAndBytesConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from pytest_llmslim.errors import ModelError, SettingError
from pytest_llmslim.models import embedded, sources
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.models.storage import parameter_count, stored_bytes

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "llama")


def change_json(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors") | changes
    kept = {name: weight for name, weight in weights.items() if weight is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_as_it_was(family: str, tmp_path: Path) -> None:
    """Equal logits; eval mode, no gradients, no Conv1D; the record says what it is."""
    loaded = load_model(str(save_tiny(family, tmp_path / family)))
    original, tokens = tiny_model(family), tiny_tokens(2, 30)
    torch.testing.assert_close(loaded.module(tokens).logits, original(tokens).logits, atol=1e-6, rtol=1e-6)
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert not any(isinstance(part, Conv1D) for part in loaded.module.modules())
    assert (loaded.name, loaded.source) == (str(tmp_path / family), "folder")
    assert (loaded.family, loaded.dtype, loaded.device) == (original.config.model_type, "float32", "cpu")
    assert loaded.tokenizer("the film").input_ids[0] == 0


def test_loading_says_nothing(
    llama: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """No bars, no reports, no log records; both libraries talk as before afterwards."""
    logging.set_verbosity_info()
    try:
        change_weights(llama, extra=torch.ones(3))
        load_model(str(llama))
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert logging.is_progress_bar_enabled()
    assert not huggingface_hub.utils.are_progress_bars_disabled()


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_weights_are_in_the_asked_dtype(llama: Path, dtype: str, size: int) -> None:
    """Whatever the checkpoint is stored in."""
    loaded = load_model(str(llama), dtype=dtype)
    assert {parameter.element_size() for parameter in loaded.module.parameters()} == {size}
    assert loaded.dtype == dtype


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_quantized_checkpoint_loads_packed(family: str, kind: str, tmp_path: Path) -> None:
    """What a team ships: saved by bitsandbytes, loaded with the same function and the small size."""
    plain = save_tiny(family, tmp_path / "plain")
    config = {
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
    }[kind]
    with quiet():
        from transformers import AutoModelForCausalLM

        quantized = AutoModelForCausalLM.from_pretrained(
            plain, quantization_config=config, device_map="cpu", dtype=torch.float32
        )
        quantized.save_pretrained(tmp_path / kind)
    tiny_tokenizer().save_pretrained(tmp_path / kind)
    module = load_model(str(tmp_path / kind)).module
    tokens = tiny_tokens(1, 16)
    with torch.no_grad():
        assert torch.equal(module(tokens).logits, quantized(tokens).logits)
    assert parameter_count(module) == parameter_count(tiny_model(family))
    assert stored_bytes(module) < 0.6 * stored_bytes(tiny_model(family))


def test_the_shared_story_model_loads() -> None:
    """A plain folder of 260,000 parameters, eight heads in four groups, which can tell a story."""
    folder = SHARED / "data" / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is not in the shared folder")
    loaded = load_model(str(folder))
    start = torch.tensor([loaded.tokenizer("Once upon a time").input_ids])
    story = loaded.module.generate(start, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert "there was a little" in loaded.tokenizer.decode(story[0])


@pytest.mark.parametrize("name", embedded.EMBEDDED)
def test_embedded_models_load(name: str) -> None:
    """They come with the package."""
    if not (Path(embedded.__file__).parents[1] / "embedded" / name / "config.json").is_file():
        pytest.skip(f"the embedded model {name} is not built yet")
    loaded = load_model(f"embedded:{name}")
    assert (loaded.name, loaded.source, loaded.family) == (f"embedded:{name}", "embedded", name)


def test_unknown_embedded_models_are_refused() -> None:
    """The message lists the known ones."""
    with pytest.raises(ModelError, match="are embedded:gpt2, embedded:llama, got embedded:bert; use one"):
        load_model("embedded:bert")


def test_an_installation_without_embedded_models_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rather than a missing config.json somewhere inside site-packages."""
    monkeypatch.setattr(embedded, "files", lambda package: tmp_path / package)
    with pytest.raises(ModelError, match=r"embedded:gpt2 comes with .*, got no model there; install"):
        load_model("embedded:gpt2")


@pytest.mark.parametrize(
    "name", ["./model", "a/b/c", "/no/such", "~/none", "model.gguf", "m.safetensors", "x\\y"]
)
def test_paths_where_nothing_is(name: str) -> None:
    """They are not looked up on the hub."""
    with pytest.raises(ModelError, match="got a path where nothing is; check the spelling"):
        load_model(name)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name(name: str) -> None:
    """Says what a name can be."""
    with pytest.raises(ModelError, match=r"named by a Hugging Face id, a folder or a \.gguf file"):
        load_model(name)


def test_a_home_folder_is_expanded(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As shells do."""
    monkeypatch.setenv("HOME", str(llama.parent))
    assert sources.resolve("~/llama") == ("folder", llama)


def test_a_folder_wins_over_a_hub_id(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gpt2` is the local folder of that name if there is one; the network is left alone."""
    monkeypatch.chdir(llama.parent)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    assert load_model("llama").source == "folder"


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".PKL"])
def test_pickled_files_are_refused(suffix: str, tmp_path: Path) -> None:
    """Reading one can run any code."""
    file = tmp_path / f"model{suffix}"
    file.touch()
    with pytest.raises(ModelError, match=r"got the pickle model.*any code.*load it there and call save_pret"):
        load_model(str(file))


def test_other_files_are_refused(llama: Path) -> None:
    """A safetensors file alone has neither config nor tokenizer."""
    with pytest.raises(ModelError, match=r"ends in .gguf, got .*model.safetensors; pass the folder"):
        load_model(str(llama / "model.safetensors"))


def test_a_folder_with_only_pickled_weights_is_refused(llama: Path) -> None:
    """Even though transformers would read it."""
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"are safetensors, got the pickle pytorch_model.bin"):
        load_model(str(llama))


def test_a_folder_without_weights_is_refused(llama: Path) -> None:
    """Says how to save them."""
    (llama / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"are safetensors in .*, got none; save them with save_pretrained"):
        load_model(str(llama))


def test_a_missing_shard_is_named(llama: Path) -> None:
    """An index that lists a file which was not copied."""
    shard = "model-00001-of-00002.safetensors"
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelError, match=f"got none called {shard}; download or copy it again"):
        load_model(str(llama))


@pytest.mark.parametrize("content", [b"", b"x" * 5000, None, b"cut"])
def test_damaged_weights_are_refused(content: bytes | None, llama: Path) -> None:
    """Empty, garbage, cut in the head or cut in the data."""
    file = llama / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes({None: whole[:1000], b"cut": whole[:-4]}.get(content, content))
    with pytest.raises(ModelError, match=r"got SafetensorError: .*; download or save the checkpoint again"):
        load_model(str(llama))


def test_missing_weights_are_refused(llama: Path) -> None:
    """Else transformers would fill them with random numbers; the first is named."""
    change_weights(llama, **{"model.layers.1.mlp.up_proj.weight": None, "lm_head.weight": None})
    with pytest.raises(ModelError, match=r"got none for 2, first 'lm_head.weight'; save the whole model"):
        load_model(str(llama))


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    """The checkpoint has it once, under the name of the embedding."""
    folder = save_tiny("gpt2", tmp_path)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    module = load_model(str(folder)).module
    assert module.lm_head.weight is module.transformer.wte.weight


def test_misshapen_weights_are_refused(llama: Path) -> None:
    """With both shapes."""
    change_json(llama / "config.json", intermediate_size=96)
    with pytest.raises(
        ModelError, match=r"mlp.down_proj.weight' .* shape \(64, 96\) .* got \(64, 128\); use"
    ):
        load_model(str(llama))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, llama: Path) -> None:
    """One in a whole model is found and named."""
    name = "model.layers.1.self_attn.q_proj.weight"
    weight = load_file(llama / "model.safetensors")[name]
    weight[3, 5] = value
    change_weights(llama, **{name: weight})
    with pytest.raises(ModelError, match=rf"got NaN or infinity in '{name}'; load it in float32"):
        load_model(str(llama))


def test_large_weights_are_finite(llama: Path) -> None:
    """A sum above the largest float32 is not mistaken for infinity."""
    change_weights(llama, **{"model.norm.weight": torch.full((64,), 3e38)})
    assert isinstance(load_model(str(llama)).module, LlamaForCausalLM)


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
        ({"model_type": "bert", "architectures": None}, "bert"),
        ({"model_type": "t5", "architectures": None}, "t5"),
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, "CLIPModel"),
        ({"architectures": ["BertForSequenceClassification"]}, "BertForSequenceClassification"),
        ({"architectures": ["LlamaModel"]}, "LlamaModel"),
    ],
)
def test_models_of_other_kinds_are_refused(changes: dict[str, object], got: str, llama: Path) -> None:
    """Encoders, encoder-decoders, other heads and models without a head."""
    change_json(llama / "config.json", **changes)
    with pytest.raises(ModelError, match=f"or a classifier made of one, got {got}; name a model with a next"):
        load_model(str(llama))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"config.json of .* is JSON, got JSONDecodeError: .*; save the model again"),
        ("[]", "is a JSON object, got list; save it again"),
        ("{}", "has a model_type that transformers .* knows, got None; update transformers"),
        ('{"model_type": "nonsense"}', "got 'nonsense'; update transformers, or name a causal"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "config.json of .* describes a model, got "),
    ],
)
def test_damaged_configs_are_refused(content: str, message: str, llama: Path) -> None:
    """Never a traceback from inside transformers."""
    (llama / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        load_model(str(llama))


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    """And an adapter is told from a model."""
    with pytest.raises(ModelError, match=r"got .* without one; save it with save_pretrained\(folder\)"):
        load_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="got a LoRA adapter; merge it into its base model"):
        load_model(str(tmp_path))


CODE = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.X"}


def test_models_with_code_of_their_own_need_leave(llama: Path) -> None:
    """The option is named; nothing is asked at the terminal."""
    change_json(llama / "config.json", model_type="own", auto_map=CODE)
    with pytest.raises(ModelError, match=r"got one with Python code of its own; .*--llm-trust-remote-code"):
        load_model(str(llama))


def test_a_known_family_ignores_code_that_comes_along(llama: Path) -> None:
    """The class of transformers is used unless the code is allowed."""
    change_json(llama / "config.json", auto_map=CODE)
    assert isinstance(load_model(str(llama)).module, LlamaForCausalLM)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen3", "gemma3"])
def test_a_folder_without_tokenizer_is_refused(family: str, tmp_path: Path) -> None:
    """For most of these transformers makes an empty one, and every text has no tokens."""
    folder = save_tiny(family, tmp_path)
    for name in os.listdir(folder):
        if "token" in name:
            (folder / name).unlink()
    with pytest.raises(
        ModelError, match="has a tokenizer in its folder, got none; put the model's tokenizer"
    ):
        load_model(str(folder))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_half_a_tokenizer_is_refused(family: str, tmp_path: Path) -> None:
    """Only its settings were copied: an error of transformers, or an empty tokenizer."""
    folder = save_tiny(family, tmp_path)
    (folder / "tokenizer.json").unlink()
    change_json(folder / "tokenizer_config.json", tokenizer_class=None)
    with pytest.raises(
        ModelError, match=r"the tokenizer of .* got (ValueError|an empty one).*; put the model's"
    ):
        load_model(str(folder))


def test_a_damaged_tokenizer_is_refused(llama: Path) -> None:
    """With what the library says."""
    (llama / "tokenizer.json").write_text('{"x')
    with pytest.raises(ModelError, match=r"tokenizer of .* can be read, got JSONDecodeError: "):
        load_model(str(llama))


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """More tokens than embeddings would end in an index error in the middle of a run."""
    folder = save_tiny("llama", tmp_path, vocab_size=64)
    with pytest.raises(ModelError, match="the model's 64 embeddings, got 128 tokens; put the model's own"):
        load_model(str(folder))


def test_unknown_dtypes_and_devices_are_settings(llama: Path) -> None:
    """They are refused before anything is loaded."""
    with pytest.raises(SettingError, match="dtype is one of float32, bfloat16, float16, got 'int8'"):
        load_model("nowhere", dtype="int8")
    with pytest.raises(SettingError, match="device is spelled like cpu, cuda or cuda:0, got 'gpu'"):
        load_model(str(llama), device="gpu")


def test_an_absent_gpu_is_a_setting(llama: Path) -> None:
    """The message counts what is there."""
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(SettingError, match=rf"'{absent}' is one of the \d+ CUDA devices seen here; use cpu"):
        load_model(str(llama), device=absent)


RESPONSE = httpx.Response(500, request=httpx.Request("GET", "https://huggingface.co/api/models/a/b"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            errors.LocalEntryNotFoundError("x"),
            "no copy in the local cache and no network; run `hf download a/b",
        ),
        (errors.OfflineModeIsEnabled("x"), "or set HF_HOME to a cache that holds it"),
        (ConnectionError("x"), "no copy in the local cache and no network"),
        (
            errors.RepositoryNotFoundError("x", response=RESPONSE),
            "got no such public model; check the spelling",
        ),
        (errors.GatedRepoError("x", response=RESPONSE), "terms have to be accepted; accept them on its page"),
        (errors.HfHubHTTPError("Server\nError", response=RESPONSE), "got HfHubHTTPError: Server; try again"),
        (OSError("disk full"), "got OSError: disk full; try again, or pass a local folder"),
    ],
)
def test_what_goes_wrong_on_the_hub(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every failure is one sentence with a next step."""

    def fail(*_args: object, **_options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=f"a/b is a local model or an id .*{message}"):
        load_model("a/b")


def test_a_name_that_is_no_id() -> None:
    """Checked by the hub's client before it asks anybody."""
    with pytest.raises(ModelError, match="got a name that is neither a path nor an id; check the spelling"):
        load_model("two words")


def test_a_hub_model_is_loaded_from_its_snapshot(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what loading needs is asked for: no pickles, no subfolders, no code unless allowed."""
    asked = []

    def download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((name, allow_patterns, ignore_patterns))
        return str(llama)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = load_model("someone/llama")
    load_model("someone/llama", trust_remote_code=True)
    assert (loaded.name, loaded.source) == ("someone/llama", "hub")
    assert [name for name, _, _ in asked] == ["someone/llama"] * 2
    assert [("*.py" in allowed, "*.bin" in allowed) for _, allowed, _ in asked] == [
        (False, False),
        (True, False),
    ]
    assert asked[0][2] == ["*/*"]

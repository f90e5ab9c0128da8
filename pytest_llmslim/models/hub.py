"""Models by Hugging Face id: from the local cache, or from the network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models.quiet import quiet

WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")
"""Files that loading needs; neither pickles nor copies of the weights for other programs."""


def download(name: str, *, trust_remote_code: bool = False) -> Path:
    """The folder of the cached model `name`, fetched first if need be.

    Raises:
        ModelError: no such model, no access, or neither network nor cached copy.
    """
    wanted = [*WANTED, *(["*.py"] if trust_remote_code else [])]
    try:
        with quiet():
            return Path(
                huggingface_hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"])
            )
    except errors.HFValidationError:
        why, remedy = "a name that is neither a path nor an id", "check the spelling"
    except errors.GatedRepoError:
        why = "a model whose terms have to be accepted"
        remedy = "accept them on its page and run `hf auth login`"
    except errors.RepositoryNotFoundError:
        why, remedy = "no such public model", "check the spelling, or run `hf auth login` for a private one"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        why = "no copy in the local cache and no network"
        remedy = (
            f"run `hf download {name} --local-dir FOLDER` where there is one and pass the folder, "
            "or set HF_HOME to a cache that holds it"
        )
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        why, remedy = f"{type(error).__name__}: {_first_line(error)}", "try again, or pass a local folder"
    raise ModelError(
        f"{name} is a local model or an id on the Hugging Face hub, got {why}; {remedy}"
    ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]

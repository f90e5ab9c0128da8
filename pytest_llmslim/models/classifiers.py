"""Models that put a text into one of a few classes: a decoder with a linear layer over its last token.

Their logits are [batch, labels], read at the last token that is no padding, so they have no perplexity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models.blocks import FAMILIES

if TYPE_CHECKING:
    from torch import nn

_KIND: Final = "ForSequenceClassification"


def is_classifier(module: nn.Module) -> bool:
    """Whether `module` is one of transformers' `...ForSequenceClassification`, or a class made from one."""
    return any(kind.__name__.endswith(_KIND) for kind in type(module).__mro__)


def names_classifier(config: Any) -> bool:  # noqa: ANN401
    """Whether a config is that of a classifier of a family whose blocks are known."""
    known = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type)
    named = getattr(config, "architectures", None) or []
    return config.model_type in FAMILIES and known in named


def check_labels(config: Any, name: str) -> None:  # noqa: ANN401
    """Refuse a regression.

    Raises:
        ModelError: the config of a classifier names one label.
    """
    if config.num_labels < 2:
        raise ModelError(
            f"the classifier {name} tells two labels or more apart, got {config.num_labels}, which is a regression "
            "without accuracy; name a model with labels"
        )


def auto_class(config: Any) -> Any:  # noqa: ANN401  # one of transformers' auto classes
    """The class that loads a checkpoint with this config."""
    return AutoModelForSequenceClassification if names_classifier(config) else AutoModelForCausalLM


def tell_padding(module: nn.Module, tokenizer: Any, name: str) -> None:  # noqa: ANN401
    """See to it that a classifier knows the token of padding, by which it finds the last token of each text.

    Many checkpoints of decoders name none; then the tokenizer's is taken, or that of the end of a text.

    Raises:
        ModelError: neither it nor its tokenizer has such a token.
    """
    config: Any = module.config
    for token in (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            config.pad_token_id = token
            return
    raise ModelError(
        f"the classifier {name} needs a token for padding, got a config without pad_token_id and a tokenizer without "
        "pad or eos token; set pad_token_id in its config.json"
    )


def head_of(module: Any) -> nn.Module:  # noqa: ANN401  # a model of transformers
    """The head that predicts next tokens.

    Raises:
        ModelError: there is none, as in a classifier.
    """
    head: nn.Module | None = module.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"this needs a model that predicts next tokens, got {type(module).__name__}; take a method that neither "
            "trains nor weighs losses of tokens, such as int8, rtn or wanda"
        )
    return head


def label_names(module: nn.Module) -> tuple[str, ...]:
    """A classifier's labels, in the order of its logits."""
    config: Any = module.config
    return tuple(str(config.id2label[index]) for index in range(config.num_labels))

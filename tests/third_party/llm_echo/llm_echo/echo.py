"""How often a model's likeliest next token is one that its prompt holds already."""

from dataclasses import dataclass

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import Answer, Answers, Metric


@dataclass(frozen=True)
class Echo:
    """Asks for one token after each of some windows of text.

    Args:
        prompts: how many windows.
    """

    prompts: int = 16

    def __post_init__(self):
        if self.prompts < 1:
            raise EvaluationError(f"echo: prompts is 1 or more, got {self.prompts}")

    def answers(self, model, context):
        """One question a window."""
        windows = context.passage.rest(self.prompts)
        found = []
        for number, window in enumerate(windows.to(context.device)):
            said = int(model(input_ids=window[None]).logits[0, -1].argmax())
            text = context.tokenizer.decode(window[-8:])
            found.append(
                Answer(f"echo/{number}", float(said in window), context.tokenizer.decode([said]), "", text)
            )
        return Answers(
            Metric("echo", higher_is_better=False),
            tuple(found),
            {"prompts": str(len(found))},
            tokens=windows.numel(),
        )

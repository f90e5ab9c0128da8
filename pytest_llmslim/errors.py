"""What goes wrong, said so that a user can act: subject, rule, got, next step, in one sentence."""


class SlimError(Exception):
    """Base of every error that a user of pytest-llmslim can cause or mend."""


class SettingError(SlimError, ValueError):
    """An option, ini value, environment variable or marker keyword is unusable."""


class ModelError(SlimError):
    """A model cannot be loaded or is of a kind that cannot be measured."""


class TextError(SlimError):
    """A text cannot be read or is too short for the protocol."""


class RecipeError(SlimError, ValueError):
    """A recipe does not parse, names an unknown method, or orders its steps so that they cannot work."""


class MissingPackageError(RecipeError):
    """A method or an evaluation needs a package that is not installed."""


class CompressionError(SlimError):
    """A method refused the model, or failed on it."""


class NothingCompressedError(CompressionError):
    """The candidate equals the reference: nothing was compressed."""


class EvaluationError(SlimError, ValueError):
    """An evaluation is unknown, has bad parameters, lacks its data, or cannot be run on this model."""


class NotApplicableError(EvaluationError):
    """An evaluation makes no sense on this model: an error where it was asked for by name, left out of `all`.

    Args:
        message: why.
        quiet: nobody would have expected it, so that it is left out without a note.
    """

    def __init__(self, message: str, *, quiet: bool = False) -> None:
        super().__init__(message)
        self.quiet = quiet


class MeasurementError(SlimError):
    """A measurement cannot be made, or gave something that is no number."""


class ScoreError(SlimError, ValueError):
    """A part of the score is missing, not finite, not positive or at chance."""


class BaselineError(SlimError):
    """A stored baseline cannot be read or written."""


class RunError(SlimError):
    """A stored run cannot be read, written or resumed."""


class MissingExtraError(SlimError):
    """A report or a command needs a package of an extra that is not installed."""


class TimeLimitError(SlimError):
    """A test took longer than it may."""

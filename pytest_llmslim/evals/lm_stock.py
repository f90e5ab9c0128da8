"""Task objects of lm-eval with their stock prompts, on the hub's rows or on local ones.

Each task is a configuration of ours in a temporary folder that includes the stock one, so that an index of a handful
of files takes the place of lm-eval's 14 000. For local rows it names another source of rows and nothing else; where
there is no split for few-shot examples they come from the asked rows, and lm-eval leaves out the asked one.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import lm_names, local_data
from pytest_llmslim.models.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

FEWSHOT_SEED = 1234
"""lm-eval's own default, so that its examples are drawn."""


class Stock(NamedTuple):
    """One task of lm-eval, ready to build requests.

    Args:
        task: lm-eval's object.
        source: where its rows came from.
        examples: where few-shot examples came from; empty: the task's own split.
        note: what a reader has to know about the rows, or empty.
    """

    task: Any
    source: str
    examples: str
    note: str


def stock(
    names: tuple[str, ...], shots: int | None, data: Path | None, *, remote_code: bool = False
) -> list[Stock]:
    """The tasks of these names.

    Args:
        names: of lm-eval's tasks, no groups.
        shots: few-shot examples; `None`: the task's own number.
        data: folder of local files, or `None`: the hub.
        remote_code: whether a data set of the hub may bring code.

    Raises:
        EvaluationError: rows cannot be had, or a task runs code.
    """
    found = [local_data.find(name, data) if data is not None else None for name in names]
    if not all(found) and not remote_code:
        _refuse_scripts()
    with silence(), tempfile.TemporaryDirectory(prefix="llmslim-tasks-") as folder:
        for name, local in zip(names, found, strict=True):
            Path(folder, f"{name}.yaml").write_text(_configuration(name, shots, local), encoding="utf-8")
        tasks = _load(names, Path(folder), data)
    for name, task in tasks.items():
        _refuse(name, task)
        if hasattr(task, "set_fewshot_seed"):
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return [_stock(tasks[name], local) for name, local in zip(names, found, strict=True)]


def release() -> str:
    """lm-eval's version: its tasks change with it."""
    return version("lm_eval")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing of lm-eval's and datasets' bars, prints, logs and warnings; all is as before afterwards."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate")]
    levels = [logger.level for logger in loggers]
    with quiet(), warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(logging.CRITICAL)
            stack.callback(logger.setLevel, level)
        yield


def _configuration(name: str, shots: int | None, local: local_data.Local | None) -> str:
    """A task of lm-eval's configuration language; JSON is YAML, and `!function` names a function."""
    lines: dict[str, object] = {"include": str(lm_names.named()[name].file), "task": name}
    if shots is not None:
        lines["num_fewshot"] = shots
    if local is not None:
        lines["dataset_kwargs"] = {"task": name, "folder": str(local.folder)}
        if not local.layout.examples:
            # lm-eval leaves the asked row out where the examples' split equals `test_split`, or where both are unset.
            key = "fewshot_split" if local.layout.split == "test" else "training_split"
            lines[key] = local.layout.split
    text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in lines.items())
    return text if local is None else f"{text}\ncustom_dataset: !function {local_data.__name__}.splits\n"


def _load(names: tuple[str, ...], folder: Path, data: Path | None) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    tasks: dict[str, Any] = {}
    for name in names:
        try:
            tasks |= manager.load([name])["tasks"]
        except EvaluationError:
            raise
        except Exception as error:  # of the hub's client, of datasets, or of the task's own code
            raise EvaluationError(_no_rows(name, error, data)) from error
    return tasks


def _no_rows(name: str, error: Exception, data: Path | None) -> str:
    """What cannot be had, why, and what to do."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not isinstance(error, OSError):  # the hub's failures are: no connection, offline, not found
        return f"lm-eval cannot build its task {name} ({reason}); try it with lm_eval itself"
    if local_data.layouts(name):
        return f"{name} is not to be had from the hub ({reason}); go online, or give its files with --llm-data DIR"
    there = ", and --llm-data has no layout for it" if data is not None else ""
    return f"{name} is not to be had from the hub ({reason}){there}; go online"


def _refuse_scripts() -> None:
    """Data sets with code of their own are read by old versions of datasets only."""
    found = version("datasets")
    if int(found.partition(".")[0]) < 4:
        raise EvaluationError(
            f"datasets {found} may run code that comes with data; "
            "run: pip install 'datasets>=4', or give --llm-trust-remote-code"
        )


def _refuse(name: str, task: Any) -> None:  # noqa: ANN401  # of lm-eval
    if getattr(task, "UNSAFE_CODE", False):
        raise EvaluationError(
            f"{name} runs code that a model wrote, which pytest-llmslim never does; use lm_eval in a sandbox"
        )
    if getattr(task, "MULTIMODAL", False):
        raise EvaluationError(f"{name} shows pictures or plays sound, and models here read text; use lm_eval")


def _stock(task: Any, local: local_data.Local | None) -> Stock:  # noqa: ANN401  # of lm-eval
    if local is None:
        config = task.config
        where = "/".join(part for part in (config.dataset_path, config.dataset_name) if part)
        return Stock(task, f"hub:{where}", "", "")
    examples = "" if local.layout.examples else local_data.SAME_ROWS
    return Stock(task, local.source(), examples, local.layout.note)

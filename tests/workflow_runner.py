"""Runs the steps of a GitHub job and of a GitLab job in bash, as their runners do, without either.

Steps that use an action are noted with their inputs; expressions are evaluated as far as the workflows need it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

BASH = ["bash", "--noprofile", "--norc", "-eo", "pipefail"]
BIN = Path(sys.executable).parent
_TOKEN = re.compile(r"'[^']*'|[a-z_]+(?:\.[\w-]+)+|&&|\|\||!=|!")
_WORDS = {"&&": " and ", "||": " or ", "!": " not "}


def evaluate(expression, known):
    """The value of an expression of GitHub; what steps have not said is empty."""

    def python(match):
        token = match[0]
        if token.startswith("'") or token == "!=":
            return token
        return _WORDS.get(token) or f"look({token!r})"

    def look(name):
        return known[name] if not name.startswith("steps.") else known.get(name, "")

    names = {
        "look": look,
        "always": lambda: True,
        "cancelled": lambda: False,
        "hashFiles": lambda *patterns: "0123abcd",
    }
    return eval(_TOKEN.sub(python, expression).strip(), {"__builtins__": {}}, names)


def filled(text, known):
    """A text of the workflow with its expressions evaluated."""
    return re.sub(
        r"\$\{\{(.*?)\}\}", lambda match: str(evaluate(match[1], known)), str(text), flags=re.DOTALL
    )


@dataclass
class Ran:
    """What became of a step: `success`, `failure` or `skipped`, and what it printed."""

    outcome: str
    output: str = ""
    inputs: dict = field(default_factory=dict)


def run_job(job, known, folder, environment, *, execute=True, failing=()):
    """All steps of a job by name (or action), as GitHub goes through them.

    Args:
        job: of the workflow.
        known: values of `github.*`, `matrix.*` and `runner.*` by dotted name.
        folder: the checkout.
        environment: of the runner.
        execute: whether scripts are run; otherwise they succeed, but for those named in `failing`.
        failing: names of steps.
    """
    known = dict(known)
    failed = False
    ran = {}
    environment = environment | {name: filled(text, known) for name, text in job.get("env", {}).items()}
    for step in job["steps"]:
        name = step.get("name", step.get("uses"))
        condition = step.get("if", "success").replace("${{", "").replace("}}", "")
        told = re.search(r"(always|cancelled)\(\)", condition)
        wanted = (told or not failed) and (condition == "success" or evaluate(condition, known))
        if not wanted:
            ran[name] = Ran("skipped")
        elif "uses" in step:
            inputs = {key: filled(text, known) for key, text in step.get("with", {}).items()}
            ran[name] = Ran("success", inputs=inputs)
            known[f"steps.{step.get('id')}.outputs.cache-primary-key"] = inputs.get("key", "")
        elif execute:
            own = {key: filled(text, known) for key, text in step.get("env", {}).items()}
            ran[name] = bash(filled(step["run"], known), folder, environment | own)
        else:
            ran[name] = Ran("failure" if name in failing else "success")
        if step.get("id"):
            known[f"steps.{step['id']}.outcome"] = ran[name].outcome
            known[f"steps.{step['id']}.conclusion"] = ran[name].outcome
        failed = failed or (ran[name].outcome == "failure" and not step.get("continue-on-error"))
    return ran, failed


def run_gitlab(pipeline, name, folder, environment):
    """The script of a job of GitLab, then its after_script in a shell of its own; both as `Ran`."""
    job = whole(pipeline, name)
    environment = dict(environment)
    for key, text in job["variables"].items():
        environment[key] = re.sub(r"\$(\w+)", lambda match: environment.get(match[1], ""), str(text))
    script = bash("\n".join([*job["before_script"], *job["script"]]), folder, environment)
    return script, bash("\n".join(job["after_script"]), folder, environment, options=["-o", "pipefail"])


def whole(pipeline, name):
    """A job with what it extends."""
    job = pipeline[name]
    if "extends" not in job:
        return job
    below = whole(pipeline, job["extends"])
    return {**below, **job, "variables": below.get("variables", {}) | job.get("variables", {})}


def bash(script, folder, environment, options=None):
    """A script in bash, with both its streams together."""
    command = BASH if options is None else ["bash", "--noprofile", "--norc", *options]
    done = subprocess.run(
        [*command, "-c", script],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return Ran("failure" if done.returncode else "success", done.stdout)


# Programs that reach into the network, faked ----------------------------------------------------------------


def environment(folder):
    """Variables of a runner, with a `python` that logs pip in `folder/pip.log` and a `gh` that keeps comments."""
    programs = folder / "programs"
    programs.mkdir(parents=True)
    (folder / "temp").mkdir()
    _program(programs / "python", PYTHON.format(log=folder / "pip.log", python=sys.executable))
    _program(programs / "gh", GH.format(python=sys.executable, comments=str(folder / "comments.json")))
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("LLMSLIM_", "GIT", "CI"))}
    return kept | {
        "PATH": f"{programs}:{BIN}:{os.environ['PATH']}",
        "RUNNER_TEMP": str(folder / "temp"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "GITHUB_REPOSITORY": "team/model",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }


def _program(path, text):
    path.write_text(text)
    path.chmod(0o755)


PYTHON = """#!/usr/bin/env bash
if [ "$1 $2" != "-m pip" ]; then exec {python} "$@"; fi
echo "${{@:3}}" >> {log}
if [ "$3" = freeze ]; then printf 'numpy==2.2.6\\ntorch==2.13.0+cpu\\ntorchao==0.18.0\\n'; fi
"""

GH = """#!{python}
import json, re, sys
from pathlib import Path

store = Path({comments!r})
comments = json.loads(store.read_text()) if store.exists() else []
words = sys.argv[1:]

def body():
    (word,) = [word for word in words if word.startswith("body=@") or words[words.index(word) - 1] == "--body-file"]
    return Path(word.removeprefix("body=@")).read_text()

if words[:2] == ["api", "--paginate"]:
    assert words[2] == "repos/team/model/issues/7/comments" and words[3] == "--jq"
    mark = re.search(r'startswith\\("(.*?)"\\)', words[4])[1]
    print("\\n".join(str(each["id"]) for each in comments if each["bot"] and each["body"].startswith(mark)))
elif words[:3] == ["api", "--method", "PATCH"]:
    (found,) = [each for each in comments if words[3] == f"repos/team/model/issues/comments/{{each['id']}}"]
    found["body"] = body()
elif words[:3] == ["pr", "comment", "7"]:
    comments.append({{"id": 100 + len(comments), "bot": True, "body": body()}})
else:
    sys.exit(f"gh was called with {{words}}")
store.write_text(json.dumps(comments))
"""

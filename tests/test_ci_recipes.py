"""The recipes that `llmslim init` writes, run: a GitHub job, a GitLab job and the pre-commit hook, red and green."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import sample_records
import yaml
from checkpoints import ship
from workflow_runner import BIN, bash, environment, evaluate, run_gitlab, run_job

from pytest_llmslim import baselines
from pytest_llmslim.commands.init import set_up

ROOT = Path(__file__).parents[1]
WORKFLOW = ".github/workflows/llmslim.yml"
GITLAB = ".gitlab-ci.yml"
OVER = "in the baseline: "
PULL_REQUEST = {
    "github.event_name": "pull_request",
    "github.base_ref": "main",
    "github.ref": "refs/pull/7/merge",
    "github.repository": "team/model",
    "github.event.pull_request.head.repo.full_name": "team/model",
    "github.event.pull_request.number": "7",
    "github.token": "secret",
    "github.workspace": "/runner/work",
    "github.run_id": "12",
    "github.run_attempt": "1",
}
SCRIPTS = (
    "Install",
    "What this runner can measure",
    "Baselines are as they were accepted",
    "Measure",
    "Compare with the baselines of the base branch",
    "Comment on the pull request",
)
CACHES = (
    "Models, and what the reference answered",
    "History of earlier runs",
    "Keep models, and what the reference answered",
    "Keep the history",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with everything that init writes, for both services."""
    folder = tmp_path_factory.mktemp("written")
    set_up(folder, "embedded:gpt2", "github")
    set_up(folder, "embedded:gpt2", "gitlab")
    return folder


def text_of(folder, name, *, every_device=False):
    """A recipe as text; with its parts for further devices put in."""
    text = (folder / name).read_text()
    return re.sub(r"^( *)#: ", r"\1", text, flags=re.MULTILINE) if every_device else text


def job_of(workflow, name, device="cpu"):
    """A job with the values of its matrix for a device."""
    job = workflow["jobs"][name]
    rows = job.get("strategy", {}).get("matrix", {}).get("include", [{"device": device}])
    (row,) = [row for row in rows if row["device"] == device]
    return job, PULL_REQUEST | {f"matrix.{key}": value for key, value in row.items()}


# As text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "schema"), [(WORKFLOW, "vendor.github-workflows"), (GITLAB, "vendor.gitlab-ci")]
)
@pytest.mark.parametrize("every_device", [False, True])
def test_recipes_are_valid_as_their_services_publish_it(written, tmp_path, name, schema, every_device):
    """By the services' own schemas, and every script is bash; with the GPU put in as well."""
    text = text_of(written, name, every_device=every_device)
    (tmp_path / "recipe.yml").write_text(text)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, tmp_path / "recipe.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert text.count("#:") == 1 or not every_device  # but in the line that tells of it
    scripts = list(_scripts(yaml.safe_load(text)))
    assert len(scripts) == {WORKFLOW: (6, 8), GITLAB: (3, 4)}[name][every_device]
    for script in scripts:
        assert bash(f"set -n\n{script}", tmp_path, os.environ).output == ""


def _scripts(recipe):
    for job in recipe.get("jobs", {}).values():
        yield from (step["run"] for step in job["steps"] if "run" in step)
    for job in recipe.values():
        for part in ("before_script", "script", "after_script"):
            if isinstance(job, dict) and part in job:
                yield "\n".join(job[part])


def test_hooks_are_valid(written):
    """The configuration of a project, and the hook that this repository offers; both say the same."""
    for command, path in (
        ("validate-config", written / ".pre-commit-config.yaml"),
        ("validate-manifest", ROOT / ".pre-commit-hooks.yaml"),
    ):
        subprocess.run([sys.executable, "-m", "pre_commit", command, path], check=True)
    (ours,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    config = yaml.safe_load((written / ".pre-commit-config.yaml").read_text())
    local = config["repos"][0]["hooks"][0]
    assert {key: ours[key] for key in local} == local


def test_the_page_shows_what_is_written(written):
    """The hook and the command of docs/ci.md are those of the recipes."""
    page = (ROOT / "docs/ci.md").read_text()
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert yaml.safe_load(shown) == yaml.safe_load((written / ".pre-commit-config.yaml").read_text())
    job, _ = job_of(yaml.safe_load(text_of(written, WORKFLOW)), "measure")
    (measure,) = [step["run"] for step in job["steps"] if step.get("name") == "Measure"]
    command = re.search(r"^\$ (pytest .*?)\n```", page, re.DOTALL | re.MULTILINE)[1]
    assert measure.replace('--llm-device "$DEVICE" ', "").split() == command.split()


@pytest.mark.parametrize(
    ("changes", "failing", "skipped"),
    [
        ({}, (), {}),
        ({}, ("Measure",), {}),
        ({}, ("Baselines are as they were accepted", "Measure"), {}),
        ({}, ("What this runner can measure",), {"Baselines are as they were accepted"}),
        ({}, ("Install",), {*SCRIPTS[1:5], *CACHES}),
        ({"github.event_name": "push"}, (), {*SCRIPTS[4:]}),
        ({"github.event.pull_request.head.repo.full_name": "fork/model"}, (), {SCRIPTS[5]}),
    ],
    ids=["green", "red", "edited", "unfit", "broken", "push", "fork"],
)
def test_which_steps_run(written, tmp_path, changes, failing, skipped):
    """A red run is compared, commented on and kept; a push is not commented on, nor a fork, whose token may not."""
    job, known = job_of(yaml.safe_load(text_of(written, WORKFLOW)), "measure")
    ran, failed = run_job(job, known | changes, tmp_path, {}, execute=False, failing=failing)
    assert {name for name, step in ran.items() if step.outcome == "skipped"} == set(skipped)
    assert failed == bool(failing)
    assert ran["Keep the report"].inputs == {"name": "llm-results-cpu", "path": "llm-results/"}


@pytest.mark.parametrize(
    ("expression", "value"),
    [("'a.b' == matrix.device", False), ("!cancelled() && matrix.device == 'cpu'", True),
     ("steps.x.outputs.y != 'true'", True), ("always() && steps.x.outcome == ''", True)],
)  # fmt: skip
def test_the_runner_of_these_tests_reads_expressions(expression, value):
    """What stands in quotes is no name, and a step that has not run said nothing."""
    assert evaluate(expression, {"matrix.device": "cpu"}) is value


def test_a_name_that_github_does_not_have_is_found():
    """A typing error in the workflow fails these tests."""
    with pytest.raises(KeyError):
        evaluate("github.bass_ref", PULL_REQUEST)


# A pull request ---------------------------------------------------------------------------------------------


def git(folder, *words):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder, message):
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", message)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A repository with a gate and its baseline on `main`, and a worse checkpoint on `smaller`."""
    root = tmp_path_factory.mktemp("forge")
    work = root / "work"
    subprocess.run(
        ["git", "init", "--quiet", "--bare", "--initial-branch", "main", root / "origin"], check=True
    )
    subprocess.run(["git", "clone", "--quiet", root / "origin", work], check=True, capture_output=True)
    git(work, "switch", "--quiet", "--orphan", "main")
    set_up(work, "embedded:gpt2", "github")
    set_up(work, "embedded:gpt2", "gitlab")
    with (work / "pytest.ini").open("a") as file:
        file.write("llm_tokens = 2040\nllm_rounds = 8\n")
    test = work / "tests/test_compressed.py"
    wide = 'max_perplexity_increase="30%"'
    text = test.read_text().replace(
        'recipe="int4", max_perplexity_increase="6%", max_time_increase="25%"', wide
    )
    test.write_text(text.replace("llm.measure()", 'llm.measure("shipped")'))
    ship(work / "shipped")
    ran = bash("pytest -q --llm-update", work, environment(root / "runner"))
    assert ran.outcome == "success", ran.output
    commit(work, "The gate, and what it holds")
    git(work, "push", "--quiet", "origin", "main")
    git(work, "switch", "--quiet", "--create", "smaller")
    ship(work / "shipped", damage=0.06)
    commit(work, "A smaller checkpoint")
    git(work, "push", "--quiet", "origin", "smaller")
    return root / "origin"


def checkout(origin, folder):
    """The branch of the pull request as a runner has it: without history, and without other branches."""
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", "smaller", f"file://{origin}", folder]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def red(origin, tmp_path_factory):
    """The pull request after its first run: folder of the runner, checkout, steps, and whether the job failed."""
    runner = tmp_path_factory.mktemp("github")
    tree = checkout(origin, runner / "tree")
    variables = environment(runner)
    job, known = job_of(yaml.safe_load(text_of(tree, WORKFLOW)), "measure")
    return runner, tree, variables, *run_job(job, known, tree, variables)


def said(ran):
    return "\n".join(f"{name}: {step.output}" for name, step in ran.items() if step.outcome == "failure")


def comments_of(runner):
    return json.loads((runner / "comments.json").read_text())


def test_a_worse_checkpoint_is_red_and_says_so_on_the_pull_request(red):
    """In the comment, in the summary of the job, and in the files that are kept."""
    runner, tree, _, ran, failed = red
    outcomes = {name: ran[name].outcome for name in SCRIPTS}
    assert outcomes == dict.fromkeys(SCRIPTS, "success") | {"Measure": "failure"}, said(ran)
    assert failed
    (comment,) = comments_of(runner)
    assert comment["body"].startswith("<!-- llmslim on cpu -->\n## ❌ Failed: 1 of 1 candidate failed")
    assert OVER in comment["body"]
    before, after = comment["body"].split("<details><summary>Against the baselines of main</summary>")
    assert "shipped" in before
    assert "shipped" in after
    summary = (runner / "summary.md").read_text()
    assert summary.count("❌ Failed") == 2
    assert "## Against the baselines of main" in summary
    kept = {path.name for path in (tree / "llm-results").iterdir()}
    assert {"report.md", "report.html", "export.json", "junit.xml", "results.jsonl", "history.jsonl"} <= kept
    assert git(tree, "status", "--porcelain") == ""


def test_torch_is_installed_first_and_stays(red):
    """The build for the device, which the rest of the installation may not replace."""
    runner = red[0]
    first, second, third = (runner / "pip.log").read_text().splitlines()
    assert first == "install --index-url https://download.pytorch.org/whl/cpu torch"
    assert second == "freeze"
    assert third == f"install --constraint {runner / 'temp'}/constraints.txt pytest-llmslim[report]"
    assert (runner / "temp/constraints.txt").read_text() == "torch==2.13.0+cpu\n"


def test_models_and_history_are_kept_for_the_next_run(red):
    """Models by what the tests name, history by the run, both found again by their beginning."""
    ran = red[3]
    models, history, models_kept, history_kept = (ran[name] for name in CACHES)
    assert models.inputs["key"] == "llmslim-models-cpu-0123abcd"
    assert models.inputs["path"].split() == [".hf-cache", ".llm-cache"]
    assert history.inputs["key"] == "llmslim-history-cpu-12-1"
    for restored, kept in ((models, models_kept), (history, history_kept)):
        assert kept.inputs == {key: restored.inputs[key] for key in ("path", "key")}
        assert restored.inputs["key"].startswith(restored.inputs["restore-keys"].strip())


def test_what_is_accepted_is_green_and_the_comment_is_replaced(red, tmp_path):
    """With the reason in the baseline; against the base branch it is still seen what became worse."""
    runner, tree, variables, *_ = red
    (runner / "comments.json").write_text(
        json.dumps(
            [
                {"id": 1, "bot": False, "body": "<!-- llmslim on cpu --> quoted by a person"},
                *comments_of(runner),
            ]
        )
    )
    accepted = bash('llmslim accept llm-results --reason "half the bytes"', tree, variables)
    assert accepted.outcome == "success", accepted.output
    git(tree, "switch", "--quiet", "--create", "accepted")
    commit(tree, "Accepted")
    job, known = job_of(yaml.safe_load(text_of(tree, WORKFLOW)), "measure")
    shutil.rmtree(runner / "temp/base")  # GitHub empties this folder before a job; all else is as it was left
    ran, failed = run_job(job, known, tree, variables)
    assert {name: ran[name].outcome for name in SCRIPTS} == dict.fromkeys(SCRIPTS, "success"), said(ran)
    assert not failed
    person, comment = comments_of(runner)
    assert person["body"].endswith("quoted by a person")
    before, after = comment["body"].split("<details>")
    assert "❌" not in before
    assert "❌ Failed" in after
    assert "half the bytes" in next(tree.glob("baselines/*/test_compressed.json")).read_text()


def test_devices_are_merged_into_one_report(red, written, tmp_path):
    """By the job that is commented out, on the results of two machines."""
    workflow = yaml.safe_load(text_of(written, WORKFLOW, every_device=True))
    job = workflow["jobs"]["report"]
    for device in ("cpu", "cuda"):
        shutil.copytree(red[1] / "llm-results", tmp_path / f"devices/llm-results-{device}")
    for path in (tmp_path / "devices/llm-results-cuda").glob("*.json*"):
        path.write_text(path.read_text().replace('"gpu": "none"', '"gpu": "Fake H1"'))
    assert job["needs"] == "measure"
    assert job["steps"][2]["with"] == {"pattern": "llm-results-*", "path": "devices"}
    (merge,) = [step["run"] for step in job["steps"] if step.get("name") == "Merge"]
    ran = bash(merge, tmp_path, red[2])
    assert ran.outcome == "success", ran.output
    page = (tmp_path / "report.html").read_text()
    assert "Fake H1" in page
    assert "shipped" in page


# GitLab -----------------------------------------------------------------------------------------------------


class Notes(BaseHTTPRequestHandler):
    """The notes of a merge request, as GitLab's API has them."""

    notes: list[dict]

    def _answer(self, body):
        self.send_response(200 if self.headers["PRIVATE-TOKEN"] == "token" else 401)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def _body(self):
        return parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["body"][0]

    def do_GET(self):
        assert self.path == "/api/v4/projects/5/merge_requests/7/notes?per_page=100"
        self._answer(self.notes)

    def do_POST(self):
        assert self.path == "/api/v4/projects/5/merge_requests/7/notes"
        self.notes.append({"id": 31, "body": self._body()})
        self._answer({})

    def do_PUT(self):
        assert self.path == "/api/v4/projects/5/merge_requests/7/notes/31"
        self.notes[-1]["body"] = self._body()
        self._answer({})

    def log_message(self, *args):
        pass


@pytest.fixture
def notes():
    """A server with one note of a person; its address, and the notes."""
    handler = type("Fresh", (Notes,), {"notes": [{"id": 30, "body": "looks good"}]})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api/v4", handler.notes
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl, as GitLab's image has it")
def test_gitlab_is_red_comments_once_and_replaces_the_note(origin, notes, tmp_path):
    """The status is pytest's, the JUnit file is where it is collected, and the note holds both comparisons."""
    url, kept = notes
    tree = checkout(origin, tmp_path / "tree")
    variables = environment(tmp_path / "runner") | {
        "CI_PROJECT_DIR": str(tree),
        "CI_PROJECT_ID": "5",
        "CI_MERGE_REQUEST_IID": "7",
        "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main",
        "CI_API_V4_URL": url,
        "GITLAB_TOKEN": "token",
    }
    pipeline = yaml.safe_load(text_of(tree, GITLAB))
    script, after = run_gitlab(pipeline, "llmslim on cpu", tree, variables)
    assert script.outcome == "failure", script.output
    assert OVER in script.output
    assert (tree / "llm-results/cpu/junit.xml").exists()
    person, note = kept
    assert person["body"] == "looks good"
    assert note["body"].startswith("<!-- llmslim on cpu -->\n## ❌ Failed"), after.output
    assert "Against the baselines of main" in note["body"]
    first = note["body"]
    # The job again, as after a push: nothing was measured this time.
    shutil.rmtree(tree / "llm-results/cpu")
    (tree / "llm-results/cpu").mkdir()
    again = "\n".join(pipeline[".llmslim-measure"]["after_script"])
    bash(again, tree, variables | {"DEVICE": "cpu"}, options=[])
    assert len(kept) == 2
    assert kept[1]["body"] != first
    assert "measured nothing on cpu" in kept[1]["body"]


@pytest.mark.parametrize("missing", ["GITLAB_TOKEN", "CI_MERGE_REQUEST_IID"])
def test_gitlab_without_a_token_or_a_merge_request_is_quiet(written, tmp_path, missing):
    """Nothing is fetched, nothing is sent, and the log says why there is no comment."""
    (tmp_path / "llm-results/cpu").mkdir(parents=True)
    script = "\n".join(yaml.safe_load(text_of(written, GITLAB))[".llmslim-measure"]["after_script"])
    variables = environment(tmp_path / "runner") | {"DEVICE": "cpu", "CI_MERGE_REQUEST_IID": "7"}
    variables.pop(missing, None)
    ran = bash(f"git() {{ true; }}\ncurl() {{ echo CURL; }}\n{script}", tmp_path, variables, options=[])
    assert ran.outcome == "success"
    assert ("No comment: GITLAB_TOKEN is not set." in ran.output) == (missing == "GITLAB_TOKEN")
    assert "CURL" not in ran.output


# pre-commit -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "ours"])
def hooked(request, tmp_path):
    """A repository with a baseline and the hook: as init writes it, or as this repository offers it."""
    folder = tmp_path / "project"
    set_up(folder, "embedded:gpt2", "none")
    if request.param == "ours":
        offered = tmp_path / "offered"
        offered.mkdir()
        shutil.copy(ROOT / ".pre-commit-hooks.yaml", offered)
        git(offered, "init", "--quiet")
        commit(offered, "Hooks")
        entry = {
            "repo": str(offered),
            "rev": git(offered, "rev-parse", "HEAD"),
            "hooks": [{"id": "llmslim-baselines"}],
        }
        (folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [entry]}))
    baselines.update(folder / "baselines", [sample_records.record()])
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    return folder


def test_a_baseline_edited_by_hand_is_refused(hooked, tmp_path):
    """With its file and line; what is written by an update goes through again."""
    variables = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PRE_COMMIT_HOME": str(tmp_path / "cache"),
    }

    def hook():
        return bash("pre-commit run --all-files", hooked, variables)

    assert hook().outcome == "success"
    (path,) = hooked.glob("baselines/*/*.json")
    whole = path.read_text()
    edited = re.sub(r'("value": )[0-9.]+', r"\g<1>0.5", whole, count=1)
    assert edited != whole
    path.write_text(edited)
    git(hooked, "add", ".")
    ran = hook()
    assert ran.outcome == "failure"
    assert f"{path.relative_to(hooked)}, line 2, " in ran.output
    assert "was edited by hand" in ran.output
    path.write_text(whole)
    measured = sample_records.record(perplexity=sample_records.quality(1.2))
    baselines.update(hooked / "baselines", [measured])
    assert path.read_text() != whole
    git(hooked, "add", ".")
    assert hook().outcome == "success"

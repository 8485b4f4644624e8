"""`slm-judge job`: train, export, verify and push on a machine that the Hub lends."""

import json
import re
from collections.abc import Iterator
from functools import partial
from importlib.metadata import requires
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, JobInfo, get_token
from huggingface_hub.errors import LocalTokenNotFoundError
from packaging.requirements import Requirement
from rich.console import Console

from slm_judge.errors import JudgeError
from slm_judge.hub import hub_errors, repeated
from slm_judge.recipe import Recipe
from slm_judge.rubric import Rubric
from slm_judge.screen import say
from slm_judge.version import METADATA, __version__

IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
"""Has uv, and the compiler that llama.cpp needs."""
SCRIPT, RECIPE = "job.py", "recipe.json"
_ROOMS = ("", ".training", ".export", ".model_card")
_SHIPPED = {".py", ".jinja", ".md", ".txt", ".typed"}
_ENDED = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
_DATA = ("train", "validation", "test", "gold")
_BODY = f'''"""Of `slm-judge job` {__version__}; takes what `on_hub` takes."""

import os
import sys

os.environ["PYTHONPATH"] = os.path.abspath("package")
os.execv(sys.executable, [sys.executable, "-m", "slm_judge.export.on_hub", *sys.argv[1:]])
'''
# The repository is private, so that uv cannot fetch the script by itself. Each try has a folder of
# its own: where the Hub does not answer, one that is there is taken as it is.
_FETCH = f"""
import os, sys, time
from huggingface_hub import snapshot_download
for wait in (1, 4, 16, 0):
    try:
        os.chdir(snapshot_download(sys.argv[1], revision=sys.argv[2], local_dir=f"job-{{wait}}"))
        break
    except Exception as error:
        if not wait:
            sys.exit(f"error: {{sys.argv[1]}} cannot be fetched ({{type(error).__name__}}).")
        time.sleep(wait)
os.execvp("uv", ["uv", "run", "{SCRIPT}", sys.argv[1], *sys.argv[3:]])
"""


def job(
    recipe: Recipe,
    flavor: str,
    timeout: str,
    user: str | None = None,
    private: bool = False,
    console: Console | None = None,
) -> None:
    """Run a recipe on the Hub, and show what is said there until it ends.

    What the job needs goes into a private repository, `NAME-job`, where it also keeps its run: the
    same command goes on where a job ended. A job that has not ended is followed: none starts beside
    it.

    Args:
        recipe: whose data, if they are files, are sent too.
        flavor: of the machine, e.g. "a10g-large".
        timeout: after which the Hub ends the job, e.g. "8h".
        user: user or organisation who pays, and gets the judge; by default whoever is logged in.
        private: push the judge into private repositories.
        console: where is written what the job says.

    Raises:
        JudgeError: the recipe names what cannot be sent, the Hub refused, or the job failed.
    """
    after = re.fullmatch(r"(\d+(?:\.\d+)?)[smhd]?", timeout)
    if not after or not float(after[1]):
        raise JudgeError(f"--timeout is a number with s, m, h or d, e.g. 90m, not {timeout!r}.")
    console, api, files = console or Console(), HfApi(), bundle(recipe)
    with hub_errors("Your account", kind=JudgeError):
        if not (token := get_token()):
            raise LocalTokenNotFoundError
        owner = user or str(repeated(api.whoami)["name"])
    repo = f"{owner}/{recipe.name}-job"
    with hub_errors(repo, kind=JudgeError):
        found = repeated(partial(_at_work, api, owner, repo))
        commit = "" if found else _send(api, repo, files)
    if not found:
        start = partial(
            api.run_job,
            image=IMAGE,
            command=[*["uv", "run", "--with", "huggingface_hub", "python", "-c"], _FETCH,
                     repo, commit, owner, *(["--private"] if private else [])],
            secrets={"HF_TOKEN": token},
            flavor=flavor,
            timeout=timeout,
            namespace=owner,
        )  # fmt: skip
        with hub_errors(repo, kind=JudgeError, advice=" It follows a job that has started."):
            found = repeated(lambda: _at_work(api, owner, repo) or start())  # an answer may be lost
        say(console, [f"{found.url}; it ends by itself, also if this command does not wait."], "")
    elif private and "--private" not in (found.command or ()):
        raise JudgeError(
            f"{found.url} is at work on this and pushes it publicly; it is ended by `hf jobs "
            f"cancel {owner}/{found.id}`. Then run the same command again."
        )
    else:
        say(console, [f"{found.url} is at work on this already, as it was asked to then."], "")
    status = _follow(api, owner, found.id, token, console).status
    if status.stage != "COMPLETED":
        raise JudgeError(
            f"Job {found.id} ended: {status.stage} {status.message or ''}. What it had finished "
            f"is kept in {repo}; the same command goes on from there."
        )


def _at_work(api: HfApi, owner: str, repo: str) -> JobInfo | None:
    """The job of a repository that has not ended, if there is one."""
    jobs = (job for job in api.list_jobs(namespace=owner) if job.status.stage not in _ENDED)
    return next((job for job in jobs if repo in (job.command or ())), None)


def _send(api: HfApi, repo: str, files: dict[str, Path | bytes]) -> str:
    """Commit what a job needs to its private repository; the commit."""
    repeated(partial(api.create_repo, repo, private=True, exist_ok=True))
    if not repeated(partial(api.model_info, repo)).private:
        raise JudgeError(f"{repo} is public. Make it private, or delete it: it gets your data.")
    operations = [CommitOperationAdd(path, source) for path, source in files.items()]
    message = "What slm-judge job needs"
    work = partial(api.create_commit, repo, operations, commit_message=message)
    return str(repeated(work).oid)


def _follow(api: HfApi, owner: str, identity: str, token: str, console: Console) -> JobInfo:
    """Show what a job says, until it has ended."""
    goes_on = (
        " The job goes on by itself: until it ends, the same command follows it. To end it: "
        f"`hf jobs cancel {owner}/{identity}`."
    )
    shown = 0

    def ended() -> JobInfo:
        nonlocal shown
        lines = api.fetch_job_logs(job_id=identity, namespace=owner, follow=True)
        for line in islice(lines, shown, None):
            say(console, [line.rstrip().replace(token, "(token)")], "")
            shown += 1
        job = api.inspect_job(job_id=identity, namespace=owner)
        if job.status.stage not in _ENDED:
            raise ConnectionError("its log broke off")
        return job

    try:
        with hub_errors(f"Job {identity}", kind=JudgeError, advice=goes_on):
            return repeated(ended)
    except BaseException as stopped:
        stopped.add_note(goes_on.strip())  # of Ctrl-C
        raise


def bundle(recipe: Recipe) -> dict[str, Path | bytes]:
    """Path in the repository -> what the job needs: script, recipe, rubric, data, slm-judge itself.

    Raises:
        JudgeError: the recipe names a folder of this machine.
    """
    rubric, files, data = Rubric.from_file(recipe.rubric), dict[str, Path | bytes](), {}
    for key in _DATA:
        location = getattr(recipe.data, key)
        if location and Path(location).is_file():
            data[key] = f"data/{key}-{Path(location).name}"
            files[data[key]] = Path(location)
        elif location and Path(location).is_dir():
            raise JudgeError(
                f"data.{key} is a folder, {location}; a job takes a file or a dataset."
            )
    if Path(recipe.base).is_dir():
        raise JudgeError(f"The base is a folder, {recipe.base}; a job needs one of the Hub.")
    sent = recipe.model_copy(
        update={
            "rubric": "rubric.json",
            "output": None,
            "data": recipe.data.model_copy(update=data),
        }
    )
    files |= {
        RECIPE: sent.model_dump_json(indent=2).encode(),
        "rubric.json": rubric.to_json().encode(),
    }
    wanted = sorted(set(requirements("train", "export")))
    header = json.dumps(wanted, indent=0).replace("\n", "\n# ")
    head = f'# /// script\n# requires-python = ">=3.11"\n# dependencies = {header}\n# ///\n'
    package = {f"package/{path}": content for path, content in METADATA.items()}
    return {SCRIPT: (head + _BODY).encode(), **files, **package, **dict(_package())}


def _package() -> Iterator[tuple[str, Path]]:
    for room in _ROOMS:
        spec = find_spec(f"slm_judge{room}")
        assert spec
        for folder in map(Path, spec.submodule_search_locations or ()):
            for file in folder.rglob("*"):
                if file.suffix in _SHIPPED and file.is_file():
                    inside = file.relative_to(folder).as_posix()
                    yield f"package/slm_judge{room.replace('.', '/')}/{inside}", file


def requirements(*extras: str) -> Iterator[str]:
    """What slm-judge with some of its extras needs, as its metadata say."""
    for line in requires("slm-judge") or ():
        found, of = Requirement(line), ("", *extras)
        if found.marker and not any(found.marker.evaluate({"extra": extra}) for extra in of):
            continue
        if found.name == "slm-judge":
            yield from requirements(*found.extras)
        else:
            found.marker = None
            yield str(found)

"""What `slm-judge job` runs on the machine of the Hub; the working folder has the recipe."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread

from huggingface_hub import HfApi

from slm_judge.artefact.locate import snapshot
from slm_judge.errors import JudgeError
from slm_judge.files import TEMPORARY
from slm_judge.hub import hub_errors, repeated
from slm_judge.recipe import Recipe

from .job import RECIPE

BRANCH, EVERY = "run", 300.0
"""Of the private repository, where the run is kept; and seconds between two looks at it."""


def main(repo: str, owner: str, *push: str) -> None:
    """Train, export, verify and push; what is done is kept in `repo`, and taken up from there.

    Raises:
        JudgeError: the Hub does not say what is kept, so that to begin anew would replace it.
    """
    api, run, done = HfApi(), Recipe.from_file(RECIPE).run_folder, Event()
    with hub_errors(repo, BRANCH, JudgeError):
        repeated(partial(api.create_branch, repo, branch=BRANCH, exist_ok=True))
        commit = str(repeated(partial(api.model_info, repo, revision=BRANCH)).sha)
    if (kept := snapshot(repo, commit, f"{run.as_posix()}/*") / run).is_dir():
        shutil.copytree(kept, run)
    keeper = Thread(target=_keep_on, args=(api, repo, run, done))
    keeper.start()
    try:
        for stage in (
            ("train", RECIPE, "--resume"),
            ("export", str(run)),
            ("verify", str(run)),
            ("push", str(run), "--user", owner, *push),
        ):
            print("$ slm-judge", *stage, flush=True)  # of the log
            command = [sys.executable, "-m", "slm_judge", *stage]
            if code := subprocess.run(command, check=False).returncode:  # noqa: S603
                sys.exit(code)
    finally:
        done.set()
        keeper.join()
        _keep(api, repo, run)


def _keep_on(api: HfApi, repo: str, run: Path, done: Event) -> None:
    while not done.wait(float(os.environ.get("SLM_JUDGE_JOB_EVERY", EVERY))):
        _keep(api, repo, run)


def _keep(api: HfApi, repo: str, run: Path) -> None:
    """What changes or vanishes meanwhile is kept the next time; training checks what it finds.

    No fault of the Hub ends a job: what it says is written to the log.
    """
    if not run.is_dir():  # nothing is done yet
        return
    kept = ["recipe.json", "rubric.json", "base.json", "data/*", "checkpoints/*", "adapter/*"]
    work = partial(
        api.upload_folder,
        repo_id=repo,
        revision=BRANCH,
        folder_path=run,
        path_in_repo=run.as_posix(),
        allow_patterns=kept,
        ignore_patterns=f"*{TEMPORARY}*",
        delete_patterns="*",
        commit_message="The run as far as it is",
    )
    try:
        with hub_errors(repo, BRANCH, JudgeError), suppress(FileNotFoundError):
            repeated(work)
    except JudgeError as error:
        print(f"The run is not kept this time: {error}", flush=True)  # of the log


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except JudgeError as error:
        sys.exit(f"error: {error}")

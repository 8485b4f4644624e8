"""`slm-judge push`: four repositories on the Hub, one commit each, only what was verified."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from rich.console import Console
from rich.filesize import decimal
from slm_judge.model_card.card import render_card, repository_names
from slm_judge.model_card.page import FIGURES, NUMBERS

from slm_judge.errors import JudgeError, VerificationError
from slm_judge.files import content_hash
from slm_judge.run import Run
from slm_judge.screen import Sheet, say

from .settings import training_facts
from .verify import REPORT, artefacts, read_report


@dataclass(frozen=True)
class Repository:
    """What goes into one repository."""

    name: str
    files: dict[str, Path | bytes]
    """Path in the repository -> local file, or content."""

    def sizes(self) -> dict[str, int]:
        """Path in the repository -> bytes."""
        return {
            path: len(source) if isinstance(source, bytes) else source.stat().st_size
            for path, source in self.files.items()
        }


def check_verified(run: Run) -> dict[str, Any]:
    """The verification report, if it covers the files as they are.

    Raises:
        VerificationError: thresholds do not hold.
        JudgeError: there is no report, or the files changed since.
    """
    report = read_report(run)
    if report["failures"]:
        reasons = "\n".join(f"  {reason}" for reason in report["failures"])
        raise VerificationError(f"{run.folder} did not pass verification:\n{reasons}")
    for name, path in artefacts(run).items():
        if content_hash(path) != report["sha256"][name]:
            raise JudgeError(
                f"{path} changed after it was verified; run `slm-judge verify {run.folder}` again."
            )
    return report


def plan(run: Run, user: str, report: Mapping[str, Any]) -> list[Repository]:
    """The four repositories of a verified run."""
    recipe, facts = run.recipe(), training_facts(run.adapter)
    evaluation = json.loads((run.report / NUMBERS).read_text(encoding="utf-8"))
    figures = {
        f"{FIGURES}/{path.name}": path for path in sorted((run.report / FIGURES).glob("*.png"))
    }
    rubric = run.rubric()
    sources = {
        "": _files(run.merged),
        "lora": _files(run.adapter),
        "bnb-4bit": _files(run.bnb),
        "GGUF": {path.name: path for path in (run.gguf_file(name) for name in recipe.export.gguf)},
    }
    repositories = []
    for kind, name in repository_names(user, recipe.name).items():
        card = render_card(kind, user, recipe, rubric, facts, report, evaluation)
        files: dict[str, Path | bytes] = {**sources[kind], "README.md": card.encode(), **figures}
        files[REPORT] = run.report / REPORT
        repositories.append(Repository(name, files))
    return repositories


def _files(folder: Path) -> dict[str, Path]:
    """A folder's files; the card takes the place of a README."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.name != "README.md"}


def push(
    run: Run,
    user: str | None = None,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    console: Console | None = None,
) -> list[str]:
    """Push a verified run. Pushing again uploads only what is missing.

    Args:
        run: the run.
        user: user or organisation; by default whoever is logged in.
        private: create the repositories as private ones.
        revision: branch to push to, created where it is missing; by default `main`.
        dry_run: only print what would be pushed.
        console: where progress is written.

    Returns:
        Addresses of the commits (empty for a dry run).

    Raises:
        VerificationError: the run did not pass `slm-judge verify`.
        JudgeError: not verified, not logged in, or the Hub refused.
    """
    console = console or Console()
    report = check_verified(run)
    api = HfApi()
    try:
        owner = user or (api.whoami()["name"] if not dry_run else "me")
        repositories = plan(run, owner, report)
        if dry_run:
            plan_table(repositories).show(console)
            return []
        commits = []
        for repository in repositories:
            commits.append(_push_one(api, repository, private, revision))
            say(console, [f"{repository.name}: {commits[-1]}"], "pushed ")
    except LocalTokenNotFoundError as error:
        raise JudgeError(
            "Not logged in to the Hub: run `hf auth login` or set HF_TOKEN."
        ) from error
    except (HfHubHTTPError, ConnectionError, OSError) as error:
        raise JudgeError(
            f"The Hub refused or broke off: {error}\nPush again to finish; what is there already "
            "is not uploaded twice."
        ) from error
    return commits


def _push_one(api: HfApi, repository: Repository, private: bool, revision: str | None) -> str:
    api.create_repo(repository.name, private=private, exist_ok=True)
    if revision:
        api.create_branch(repository.name, branch=revision, exist_ok=True)
    operations = [
        CommitOperationAdd(path_in_repo=path, path_or_fileobj=source)
        for path, source in repository.files.items()
    ]
    commit = api.create_commit(
        repository.name,
        operations,
        commit_message="Upload a judge with slm-judge",
        revision=revision,
    )
    return str(commit.commit_url)


def plan_table(repositories: list[Repository]) -> Sheet:
    """What would be pushed."""
    table = Sheet("Nothing is pushed (--dry-run)", ("size",))
    for repository in repositories:
        sizes = repository.sizes()
        table.group(repository.name)
        for path, size in sizes.items():
            table.add(path, decimal(size))
        table.add("total", decimal(sum(sizes.values())), style="bold")
    return table

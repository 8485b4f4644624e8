"""`slm-judge push`: four repositories on the Hub and their collection, only what was verified.

And, where they are asked for, the annotated items, and a Space in which people try the judge.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from rich.console import Console
from rich.filesize import decimal
from slm_judge.model_card.card import (
    data_name,
    evaluation_results,
    render_card,
    render_data_card,
    repository_names,
)
from slm_judge.model_card.page import FIGURES, NUMBERS

from slm_judge.artefact.base import BASE_FILE, Base
from slm_judge.artefact.judge_files import ADAPTER_FOLDER, adapter_beside
from slm_judge.artefact.locate import DEFAULT_FILE, default_gguf, default_text
from slm_judge.errors import JudgeError, VerificationError
from slm_judge.files import content_hash
from slm_judge.hub import hub_errors, repeated
from slm_judge.recipe import VerifyConfig, public_settings
from slm_judge.run import FACTS, Run
from slm_judge.screen import Sheet, say

from .artefacts import BESIDE, artefacts, is_part, parts
from .dataset import SPLITS, annotated_items
from .gguf import contents
from .space import space_files
from .verify import REPORT, read_report

CARD, RESULTS = "README.md", ".eval_results/slm-judge.yaml"
_DRAWN = rf"{FIGURES}/(alpha|reliability|risk-coverage|confusion-[^/]*)\.png"
_FINISH = "\nPush again to finish; what is there already is not uploaded twice."


@dataclass(frozen=True)
class Repository:
    """What goes into one repository."""

    name: str
    files: dict[str, Path | bytes]
    """Path in the repository -> local file, or content."""
    kind: Literal["model", "dataset", "space"] = "model"

    def sizes(self) -> dict[str, int]:
        """Path in the repository -> bytes."""
        return {
            path: len(source) if isinstance(source, bytes) else source.stat().st_size
            for path, source in self.files.items()
        }

    def is_ours(self, path: str) -> bool:
        """Whether some push of this judge wrote a file of this path; others put others there."""
        if self.kind == "space":
            return bool(re.match(r"slm_judge(-[^/]*\.dist-info)?/", path))
        if self.kind == "dataset":
            return path in {f"{name}.jsonl" for name in SPLITS}
        if self.name.endswith("-GGUF"):
            name = self.name.rpartition("/")[2].removesuffix("-GGUF")
            ours = rf"{re.escape(name)}-[A-Z0-9_]+\.gguf"
            part = path == DEFAULT_FILE or bool(re.fullmatch(ours, path))
        else:
            beside = path in BESIDE and self.name.endswith("-bnb-4bit")
            part = beside or ("/" not in path and is_part(path))
        return part or path == RESULTS or bool(re.fullmatch(_DRAWN, path))


def check_verified(run: Run) -> dict[str, Any]:
    """The verification report, if it covers the files as they are.

    Raises:
        VerificationError: thresholds do not hold.
        JudgeError: there is no report, or files or thresholds changed since, or a file is empty.
    """
    report, again = read_report(run), f"run `slm-judge verify {run.folder}` again."
    try:
        hashes, thresholds = report["sha256"], VerifyConfig.model_validate(report["thresholds"])
        failures = list(report["failures"])
    except (KeyError, TypeError, ValueError) as error:
        raise JudgeError(f"{run.report / REPORT} is damaged; {again}") from error
    if failures:
        reasons = "\n".join(f"  {reason}" for reason in failures)
        raise VerificationError(f"{run.folder} did not pass verification:\n{reasons}")
    if thresholds != run.recipe().verify:
        raise JudgeError(f"The recipe's section `verify` changed since the verification; {again}")
    for name, path in artefacts(run).items():
        if empty := [part for part in parts(path) if not part.stat().st_size]:
            raise JudgeError(f"{empty[0]} is empty; run `slm-judge export {run.folder}` again.")
        if content_hash(path, parts(path)) != hashes.get(name):
            raise JudgeError(f"{path} changed after it was verified; {again}")
    return report


def left_out(run: Run) -> list[Path]:
    """What lies in the folders of a run's artefacts and is not part of them."""
    known = {part for path in artefacts(run).values() for part in parts(path)}
    known |= {part.parent for part in known}
    folders = (run.adapter, run.merged, run.bnb, run.bnb / ADAPTER_FOLDER, run.gguf)
    found = {path for folder in folders for path in folder.glob("*")} - known
    return sorted(path for path in found if path.name not in (CARD, DEFAULT_FILE))


def plan(run: Run, user: str, report: Mapping[str, Any], data: bool = False) -> list[Repository]:
    """The four repositories of a verified run, and before them that of its `data` if asked for."""
    recipe, facts = run.recipe(), run.facts()
    facts["base_commit"] = Base.load(run.adapter).revision
    facts["adapter_beside"] = adapter_beside(run.bnb)
    evaluation = read_report(run, NUMBERS)
    rubric = run.rubric()
    pictures = {f"{FIGURES}/{path.name}": path for path in (run.report / FIGURES).glob("*")}
    figures = {name: pictures[name] for name in sorted(pictures) if re.fullmatch(_DRAWN, name)}
    sources = {
        "": _named(run.merged),
        "lora": _named(run.adapter),
        "bnb-4bit": _named(run.bnb),
        "GGUF": {(path := run.gguf_file(name)).name: path for name in recipe.export.gguf},
    }
    holds = {name: contents(run.gguf_file(name)) for name in recipe.export.gguf}
    repositories, names = [], repository_names(user, recipe.name)
    if data:
        facts["published_data"] = data_name(user, recipe.name)
        tables, counts = annotated_items(run)
        card = render_data_card(recipe, rubric, counts, names[""])
        repository = Repository(facts["published_data"], {**tables, CARD: card.encode()}, "dataset")
        repositories.append(repository)
    for kind, name in names.items():
        card = render_card(kind, user, recipe, rubric, facts, report, evaluation, holds)
        files: dict[str, Path | bytes] = {
            place: _public(path) for place, path in sources[kind].items()
        }
        files |= {CARD: card.encode(), **figures}
        if kind == "GGUF":
            files[DEFAULT_FILE] = default_text(default_gguf(run)).encode()
        files[REPORT] = run.report / REPORT
        if results := evaluation_results(kind, recipe, facts, evaluation):
            files[RESULTS] = results.encode()
        repositories.append(Repository(name, files))
    return repositories


def _named(folder: Path) -> dict[str, Path]:
    """Place in the repository -> file of an artefact's folder."""
    return {path.relative_to(folder).as_posix(): path for path in parts(folder)}


def _public(path: Path) -> Path | bytes:
    """A file of the judge as it may be published: without the folders of this machine."""
    if path.name not in (BASE_FILE, FACTS):
        return path
    settings = json.loads(path.read_bytes())
    public = public_settings(settings)
    if public == settings:
        return path
    if path.name == BASE_FILE:  # so that no base of ours or of the Hub is taken for that folder
        public["base"] = f"./{public['base']}"
    return json.dumps(public, indent=2).encode()


def push(
    run: Run,
    user: str | None = None,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    data: bool = False,
    console: Console | None = None,
    space: bool = False,
) -> list[str]:
    """Push a verified run. Pushing again uploads only what is missing.

    Args:
        run: the run.
        user: user or organisation; by default whoever is logged in.
        private: create the repositories as private ones; one that is public already is refused.
        revision: branch to push to, created where it is missing; by default `main`. A Space is
            built from `main` alone: its page takes the judge from this branch.
        dry_run: only print what would be pushed.
        data: also publish the annotated items, as a dataset.
        console: where progress is written.
        space: also make a Space, in which people try the judge.

    Returns:
        Addresses of the commits (empty for a dry run).

    Raises:
        VerificationError: the run did not pass `slm-judge verify`.
        JudgeError: not verified, not logged in, public where private was asked for, the Hub
            refused, or another process is at work on the run.
    """
    screen, api = console or Console(), HfApi()

    def told(text: str, kind: str = "note: ") -> None:
        say(screen, [text], kind)

    with run.alone():
        report = check_verified(run)
        for path in left_out(run):
            told(f"{path} is not part of the judge and stays here.")
        if not (owner := user or ("me" if dry_run else "")):
            with hub_errors("Your account", kind=JudgeError):
                owner = str(repeated(api.whoami, told)["name"])
        repositories = plan(run, owner, report, data)
        if space:
            recipe = run.recipe()
            files = space_files(recipe, default_gguf(run), owner, revision)
            repositories.append(Repository(f"{owner}/{recipe.name}-demo", files, "space"))
        if dry_run:
            plan_table(repositories).show(screen)
            return []
        for repository in repositories:  # all of them before the first gets anything
            with hub_errors(repository.name, revision, JudgeError, _FINISH):
                repeated(partial(_make, api, repository, private), told)
        commits = []
        for repository in repositories:
            with hub_errors(repository.name, revision, JudgeError, _FINISH):
                commits.append(repeated(partial(_push_one, api, repository, revision, told), told))
            told(f"{repository.name}: {commits[-1]}", "pushed ")
        title = run.recipe().name
        try:
            with hub_errors(f"The collection {title}", kind=JudgeError):
                collect = partial(_collect, api, owner, title, repositories, private)
                told(repeated(collect, told), "collection ")
        except JudgeError as error:  # e.g. of a token for repositories alone
            told(f"All repositories are pushed, but not in a collection of the Hub: {error}")
        return commits


def _collect(
    api: HfApi, owner: str, title: str, repositories: list[Repository], private: bool
) -> str:
    """Put the repositories into a collection of that title, which is made where there is none."""
    collection = api.create_collection(title, namespace=owner, private=private, exists_ok=True)
    there = {item.item_id for item in collection.items}
    for repository in repositories:
        if repository.name not in there:
            api.add_collection_item(
                collection.slug, repository.name, repository.kind, exists_ok=True
            )
    return str(collection.url)


def _make(api: HfApi, repository: Repository, private: bool) -> None:
    """Make a repository where there is none; one that is there stays as public as it is.

    Raises:
        JudgeError: it is public, and a private one was asked for.
    """
    name, kind = repository.name, repository.kind
    sdk = "docker" if kind == "space" else None
    api.create_repo(name, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk)
    if private and not api.repo_info(name, repo_type=kind).private:
        raise JudgeError(
            f"{name} is public already, which --private does not change. Make it private on the "
            "Hub, or delete it; nothing was sent to it."
        )


def _push_one(
    api: HfApi, repository: Repository, revision: str | None, told: Callable[[str], object]
) -> str:
    """Commit the files; what is there already is neither sent nor committed again.

    Files of an earlier push that this one lacks go in the same commit: of another judge, they would
    be taken for this one's.
    """
    kind = repository.kind
    revision = None if kind == "space" else revision  # the Hub builds a Space from `main` alone
    if revision:
        api.create_branch(repository.name, branch=revision, exist_ok=True, repo_type=kind)
    there = api.list_repo_files(repository.name, revision=revision, repo_type=kind)
    stale = [path for path in there if path not in repository.files and repository.is_ours(path)]
    for path in stale:
        told(f"{repository.name}: {path} is of an earlier push, and goes.")
    added = [CommitOperationAdd(path, source) for path, source in repository.files.items()]
    commit = api.create_commit(
        repository.name,
        [*added, *map(CommitOperationDelete, stale)],
        commit_message="Upload a judge with slm-judge",
        repo_type=kind,
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

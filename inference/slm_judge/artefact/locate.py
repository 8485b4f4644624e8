"""Finding a judge: a Hub repository, a folder or a `.gguf` file. Weights are never pickled."""

import json
import re
from contextlib import suppress
from functools import cache, partial
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
from rich.console import Console

from slm_judge.errors import ModelError
from slm_judge.hub import hub_errors, is_unreachable, repeated
from slm_judge.run import Run
from slm_judge.screen import say

DEFAULT_QUANTIZATIONS = ("Q4_0", "Q4_K_M")
"""Which GGUF file of several is taken where no `DEFAULT_FILE` says it, the first that is there."""
DEFAULT_FILE = "default_gguf.json"
"""Beside several GGUF files; its `quantization` is the one that people get who do not choose."""
TEXTS = ("*.json", "*.jinja", "*.txt", "*.model")
"""All that a tokenizer and a configuration need."""
WEIGHTS = ("model*.safetensors", "adapter_model.safetensors", "adapter/adapter_model.safetensors")


def locate(model: str | Path, revision: str | None, quantization: str | None) -> Path:
    """The local folder or `.gguf` file of a judge, downloaded where `model` is a Hub repository.

    Args:
        model: `user/name`, a folder, or a `.gguf` file.
        revision: branch, tag or commit of a repository.
        quantization: which GGUF to take where there are several, e.g. "Q8_0"; by default the one
            that `DEFAULT_FILE` names, or Q4_0, or Q4_K_M.

    Raises:
        ModelError: there is no such judge, or it may not be read.
    """
    path = Path(model)
    if revision and path.exists():
        raise ModelError(
            f"revision={revision} is of Hub repositories; {path} is here. Leave it out."
        )
    if path.is_file():
        if quantization and quantization.lower() not in path.name.lower():
            raise ModelError(
                f"quantization={quantization} chooses among the files of a folder or repository; "
                f"{path} is one file. Leave it out, or name another file."
            )
        return path
    if path.is_dir():
        files = [file.name for file in path.iterdir()]
        name = choose_gguf(files, quantization, str(path), named_default(path))
        return path / name if name else path
    if path.suffix == ".gguf" or str(model).count("/") != 1:
        raise ModelError(
            f"There is no file or folder {model}, and it is not the name of a Hub repository "
            "(user/name)."
        )
    commit = resolve(str(model), revision)
    texts = snapshot(str(model), commit, *TEXTS)
    with hub_errors(str(model), revision):
        files = [file.path for file in get_cached_repo_tree(str(model), revision=commit)]
    if name := choose_gguf(files, quantization, str(model), named_default(texts)):
        return snapshot(str(model), commit, escape(name)) / name
    return snapshot(str(model), commit, *TEXTS, *WEIGHTS)


def resolve(repo: str, revision: str | None) -> str:
    """The commit that a branch, a tag or None (`main`) stands for; the cache keeps it.

    Where the Hub does not answer, it is what the cache has kept, and a note says so.

    Raises:
        ModelError: there is no such repository or revision, or neither can be asked.
    """
    if re.fullmatch("[0-9a-f]{40}", revision or ""):
        return str(revision)
    with hub_errors(repo, revision):
        commit, cached = repeated(partial(_ask, repo, revision), _tell)
    if cached:
        tell_once(
            f"The Hub does not answer: {repo} is taken from the local cache, at commit {commit}."
        )
    return commit


def _ask(repo: str, revision: str | None) -> tuple[str, bool]:
    """A revision's commit, and whether that comes from the cache."""
    api = HfApi()
    try:
        api.model_info(repo, revision=revision)  # `resolve_revision` would not say that it failed
        return api.resolve_revision(repo, revision=revision).resolved, False
    except Exception as error:
        if not is_unreachable(error):
            raise
        return api.resolve_revision(repo, revision=revision, local_files_only=True).resolved, True


def _tell(text: str) -> None:
    say(Console(stderr=True), [text])


tell_once = cache(_tell)


def snapshot(repo: str, commit: str, *patterns: str) -> Path:
    """The folder of a repository's files in the cache; what is missing there is downloaded.

    Raises:
        ModelError: they are not there, or the download failed.
    """
    download = partial(snapshot_download, repo, revision=commit, allow_patterns=list(patterns))
    with hub_errors(repo, commit):
        with suppress(CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
            get_cached_repo_tree(repo, revision=commit)  # tells whether a folder is complete
            return Path(download(local_files_only=True))
        folder = Path(repeated(download, _tell))
        if not folder.is_dir() and not get_cached_repo_tree(repo, revision=commit):
            # An answer of another shape, which the cache would keep as the listing for good.
            (folder.parents[1] / "trees" / f"{commit}.json").unlink(missing_ok=True)
            raise ModelError(f"{repo}: the Hub lists no files at commit {commit}. Try again.")
    return folder


def default_gguf(run: Run) -> str:
    """The quantization of a run that people get who do not choose."""
    settings = run.recipe().export
    known = _known(settings.default or named_default(run.gguf))
    return next((name for name in known if name in settings.gguf), settings.gguf[0])


def _known(default: str | None) -> tuple[str, ...]:
    """Quantizations by which one that nobody chose is looked for."""
    return (default, *DEFAULT_QUANTIZATIONS) if default else DEFAULT_QUANTIZATIONS


def default_text(quantization: str) -> str:
    """What a `DEFAULT_FILE` has that names a quantization."""
    return json.dumps({"quantization": quantization})


def named_default(folder: Path) -> str | None:
    """What the `DEFAULT_FILE` of a folder says, if there is one.

    Raises:
        ModelError: it says something else.
    """
    path = folder / DEFAULT_FILE
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_bytes())["quantization"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f'{path} is damaged; expected {{"quantization": "Q8_0"}}.') from error


def choose_gguf(
    files: list[str], quantization: str | None, where: str, default: str | None = None
) -> str | None:
    """The GGUF file to load, or None where there is none at all.

    Args:
        files: names.
        quantization: the one that was asked for.
        where: the files are, for messages.
        default: the one that is taken, if it is there, where none was asked for.

    Raises:
        ModelError: there are GGUF files, but not of the quantization that was asked for.
    """
    candidates = sorted(name for name in files if name.endswith(".gguf"))
    wanted = (quantization,) if quantization else _known(default)
    for one in wanted:
        whole = re.compile(rf"(^|[-._/]){re.escape(one)}\.gguf$", re.IGNORECASE)
        for name in candidates:
            if whole.search(name):  # F16 is not the end of BF16
                return name
    if quantization and not candidates:
        raise ModelError(f"{where} has no GGUF files, so no quantization {quantization} either.")
    if candidates and (quantization or len(candidates) > 1):
        raise ModelError(
            f"{where} has no {' or '.join(wanted)} file; choose one with quantization=: "
            f"{', '.join(candidates)}"
        )
    return candidates[0] if candidates else None

"""Finding a judge: a Hub repository, a folder or a `.gguf` file. Weights are never pickled."""

import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from slm_judge.errors import ModelError
from slm_judge.hub import hub_message

DEFAULT_QUANTIZATION = "Q4_K_M"
_SAFE_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


def locate(model: str | Path, revision: str | None, quantization: str | None) -> Path:
    """The local folder or `.gguf` file of a judge, downloaded where `model` is a Hub repository.

    Args:
        model: `user/name`, a folder, or a `.gguf` file.
        revision: branch, tag or commit of a repository.
        quantization: which GGUF to take where there are several, e.g. "Q8_0"; Q4_K_M by default.

    Raises:
        ModelError: there is no such judge, or it may not be read.
    """
    path = Path(model)
    if path.is_file():
        return path
    if path.is_dir():
        files = [file.name for file in path.iterdir()]
        name = choose_gguf(files, quantization, str(path))
        return path / name if name else path
    if path.suffix == ".gguf" or str(model).count("/") != 1:
        raise ModelError(
            f"There is no file or folder {model}, and it is not the name of a Hub repository "
            "(user/name)."
        )
    try:
        return _download(str(model), revision, quantization)
    except OSError as error:
        raise ModelError(hub_message(str(model), revision, error)) from error
    except HFValidationError as error:
        raise ModelError(f"{model!r} is not the name of a Hub repository: {error}") from error


def _download(repo: str, revision: str | None, quantization: str | None) -> Path:
    try:
        info = HfApi().model_info(repo, revision=revision)
        files, commit = [file.rfilename for file in info.siblings or []], info.sha
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError):
        raise
    except (HfHubHTTPError, OfflineModeIsEnabled, ConnectionError, OSError):
        # Not reachable: what was downloaded before serves as well.
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        files, commit = [file.name for file in folder.iterdir()], folder.name
    name = choose_gguf(files, quantization, repo)
    if name:
        return Path(hf_hub_download(repo, name, revision=commit))
    return Path(snapshot_download(repo, revision=commit, allow_patterns=_SAFE_FILES))


def choose_gguf(files: list[str], quantization: str | None, where: str) -> str | None:
    """The GGUF file to load, or None where there is none at all.

    Raises:
        ModelError: there are GGUF files, but not of the quantization that was asked for.
    """
    candidates = sorted(name for name in files if name.endswith(".gguf"))
    wanted = quantization or DEFAULT_QUANTIZATION
    whole = re.compile(rf"(^|[-._/]){re.escape(wanted)}\.gguf$", re.IGNORECASE)
    for name in candidates:
        if whole.search(name):  # F16 is not the end of BF16
            return name
    if quantization and not candidates:
        raise ModelError(f"{where} has no GGUF files, so no quantization {quantization} either.")
    if candidates and (quantization or len(candidates) > 1):
        raise ModelError(
            f"{where} has no {wanted} file; choose one with quantization=: {', '.join(candidates)}"
        )
    return candidates[0] if candidates else None

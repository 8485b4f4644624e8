"""The llama.cpp sources that match the installed llama-cpp-python.

They carry what no wheel does: `convert_hf_to_gguf.py` (export) and the real Qwen2 vocabulary
(the offline base).
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from slm_judge.errors import MissingExtraError, ModelError


def cache_folder() -> Path:
    """Where slm-judge keeps what it can make or fetch again (`SLM_JUDGE_CACHE`)."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "slm-judge"
    return Path(os.environ.get("SLM_JUDGE_CACHE", default))


def llama_cpp_source() -> Path:
    """The folder `vendor/llama.cpp` of the source distribution, fetched by pip once and cached.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        ModelError: pip cannot fetch the source distribution.
    """
    try:
        release = version("llama-cpp-python")
    except PackageNotFoundError:
        raise MissingExtraError(
            "This needs the sources of llama.cpp: pip install 'slm-judge[gguf]'."
        ) from None
    folder = cache_folder() / f"llama-cpp-python-{release}"
    if not folder.exists():
        _fetch(release, folder)
    return folder / "vendor" / "llama.cpp"


def _fetch(release: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--no-binary", "llama-cpp-python", "--dest", work, f"llama-cpp-python=={release}"),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        archives = list(Path(work).glob("*.tar.gz"))
        if result.returncode or not archives:
            raise ModelError(
                f"pip could not fetch the sources of llama-cpp-python {release}:\n"
                f"{result.stderr.strip()}\nCheck the network, then run the same command again."
            )
        with tarfile.open(archives[0]) as archive:
            archive.extractall(Path(work) / "out", filter="data")
        (unpacked,) = (Path(work) / "out").iterdir()
        try:
            unpacked.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
            shutil.rmtree(unpacked)

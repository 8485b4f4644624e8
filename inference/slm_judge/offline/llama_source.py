"""The llama.cpp sources that match the installed llama-cpp-python.

They carry what no wheel does: the converters (export) and the real Qwen2 vocabulary
(the offline base). The converters are run, so that each use checks every file of them against a
digest that is in this module, or in the folder's name where the release is newer than the module.
"""

import gzip
import hashlib
import io
import os
import tarfile
import tempfile
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from slm_judge.errors import MissingExtraError, ModelError
from slm_judge.screen import say

from .package_index import download

_PACKAGE = "llama-cpp-python"
_SOURCES = "vendor/llama.cpp"
CONVERTER, LORA_CONVERTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
# What is used of them, here and by the tests; all else is not unpacked.
_PARTS = tuple(
    f"{_SOURCES}/{part}/"
    for part in (
        *(CONVERTER, LORA_CONVERTER, "conversion", "gguf-py", "models/ggml-vocab-qwen2.gguf"),
        *("common", "vendor", "ggml/include"),
    )
)
# Release -> SHA-256 of its source distribution, and `_digest` of its parts.
_KNOWN = {
    "0.3.36": (
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        "824e0df9b3e21582d819fc12003c2fe7914efe0299a1eaa5a81d78e536e5c8cc",
    ),
}
_LARGEST = 2 << 30  # bytes of all files in a source distribution


def cache_folder() -> Path:
    """Where slm-judge keeps what it can make or fetch again (`SLM_JUDGE_CACHE`), made private.

    Raises:
        ModelError: others can write there, or it cannot be made.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "slm-judge"
    folder = Path(os.environ.get("SLM_JUDGE_CACHE", default))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise ModelError(
            f"The cache {folder} cannot be made ({error.strerror}): name another folder in "
            "SLM_JUDGE_CACHE."
        ) from None
    if os.name == "posix" and (found.st_mode & 0o022 or found.st_uid not in (0, os.geteuid())):
        raise ModelError(
            f"Others can write to the cache {folder}, from which a program is run: make it yours "
            f"alone (chmod 700 {folder}), or name another folder in SLM_JUDGE_CACHE."
        )
    return folder


def llama_cpp_source() -> Path:
    """The folder `vendor/llama.cpp` of the source distribution, fetched once, checked each time.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        ModelError: the sources cannot be fetched, or are not those of the release.
    """
    try:
        release = version(_PACKAGE).partition("+")[0]
    except PackageNotFoundError:
        raise MissingExtraError(
            "This needs the sources of llama.cpp: pip install 'slm-judge[gguf]'."
        ) from None
    digest = _KNOWN.get(release, ("", "*"))[1]
    found = sorted(cache_folder().glob(f"llama.cpp-{release}-{digest}"))
    folder = found[0] if found else _fetch(release)
    if _digest(folder) != folder.name.rpartition("-")[2]:
        raise ModelError(
            f"{folder} is not as it was fetched: files in it, which would be run, were changed or "
            "added. Find out by whom, delete the folder, and run the same command again."
        )
    return folder / _SOURCES


def _fetch(release: str) -> Path:
    """Fetch and unpack the sources into a folder with the digest of its parts in its name."""
    expected = _KNOWN.get(release)
    archive, index = download(_PACKAGE, release, expected and expected[0])
    with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
        unpacked = Path(work) / "unpacked"
        if not expected:
            note = (
                f"this slm-judge is older than {_PACKAGE} {release}; its sources were checked "
                f"against the SHA-256 that {index} gives, and none of ours."
            )
            say(Console(stderr=True), [note])
        unpacked.mkdir(mode=0o700)
        _unpack(archive, unpacked, release)
        folder = cache_folder() / f"llama.cpp-{release}-{_digest(unpacked)}"
        try:
            unpacked.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    return folder


def _unpack(archive: bytes, folder: Path, release: str) -> None:
    size = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            for member in opened:
                size += member.size
                name = member.name.partition("/")[2]  # without the folder that holds all
                if size > _LARGEST:
                    raise tarfile.TarError(f"it unpacks to more than {_LARGEST >> 30} GiB")
                if member.isreg() and f"{name}/".startswith(_PARTS):
                    opened.extract(member.replace(name=name, deep=False), folder, filter="data")
        if not (folder / _SOURCES / CONVERTER).is_file():
            raise tarfile.TarError(f"it has no {_SOURCES}/{CONVERTER}")
    except (tarfile.TarError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise ModelError(
            f"The source distribution of {_PACKAGE} {release} cannot be used: {error}. "
            f"Install a release that is known: pip install {_PACKAGE}=={max(_KNOWN)}."
        ) from None


def _digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files; whatever else is there changes it too."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        plain = path.is_file() and not path.is_symlink()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if plain else "not a file"
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()

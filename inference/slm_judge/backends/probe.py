"""A GGUF file of a stranger is loaded in a child first: what is wrong in it can abort llama.cpp."""

import hashlib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from slm_judge.child import ChildDied, answer, ask_child
from slm_judge.errors import ModelError, require
from slm_judge.offline.llama_source import cache_folder
from slm_judge.version import __version__

from . import check_finite
from .gguf import GgufBackend


def check_gguf(
    path: Path,
    max_memory: float | None = None,
    n_threads: int | None = None,
    adapter: Path | None = None,
) -> None:
    """Load a judge in a child and let it answer, unless these very files have passed before.

    Args:
        path: the `.gguf` file.
        max_memory: see `GgufBackend`.
        n_threads: see `GgufBackend`.
        adapter: see `GgufBackend`.

    Raises:
        ModelError: it cannot be loaded, or the child did not survive it.
    """
    require("llama_cpp", "gguf")
    files = [path, adapter] if adapter else [path]
    for one in files:
        with one.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{one} is not a GGUF file that llama.cpp can load.")
    passed = cache_folder() / "passed" / "-".join(map(_identity, files))
    if passed.exists():
        return
    request = {"path": path, "max_memory": max_memory, "n_threads": n_threads, "adapter": adapter}
    seconds = 120 + path.stat().st_size / 10e6
    try:
        ask_child("backends.probe", request, seconds)
    except ModelError as error:
        said = str(error)
        named = any(str(one) in said for one in files)
        raise ModelError(said if named else f"{path}: {said}") from None
    except ChildDied as death:
        raise ModelError(
            f"{path} stops llama.cpp, or the memory is too small for it: {death}. Download or "
            "export the file again; if you know it to be good, `trust` it (--trust)."
        ) from None
    with suppress(OSError):  # the next load takes longer
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()


def _identity(path: Path) -> str:
    found = path.stat()
    parts = (path.resolve(), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns,
             found.st_ctime_ns, version("llama-cpp-python"), __version__)  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _try(path: str, max_memory: float | None, n_threads: int | None, adapter: str | None) -> str:
    given = Path(adapter) if adapter else None
    backend = GgufBackend(Path(path), max_memory, n_threads=n_threads, adapter=given)
    fields = backend.contract.rubric.fields
    prompts = backend.reader.encode([dict.fromkeys(fields, text) for text in ("a", "Zebra 1.")])
    for _, logits in backend.run(prompts):
        check_finite(logits, backend.path)
    return "passed"


if __name__ == "__main__":
    answer(_try)

"""Errors that a user can act on; the command line prints them and exits with code 2."""

import errno
import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType

_LLAMA_HELP = (
    " It is compiled on installation: install a C++ compiler and make first "
    "(Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install)."
)


# What the stages of each extra import, not always at once; the extra's other packages come along.
_EXTRAS = {
    "app": ("starlette", "uvicorn"),
    "serve": ("fastapi", "prometheus_client", "uvicorn"),
    "ray": ("ray",),
    "evaluate": ("formulaic", "krippendorff", "matplotlib", "pandas", "scipy", "sklearn"),
    "train": (
        *("torch", "transformers", "bitsandbytes", "accelerate", "krippendorff", "scipy"),
        *("crowdkit", "peft", "trl"),
    ),
    "export": (
        *("torch", "transformers", "bitsandbytes", "krippendorff", "llama_cpp", "gguf"),
        *("peft", "sentencepiece"),
    ),
}


class JudgeError(Exception):
    """Something the user can put right; the message says what was expected and what to do."""


class RubricError(JudgeError):
    """The rubric is not valid."""


class DataError(JudgeError):
    """The annotated data, or the rows to annotate, cannot be used as they are."""


class ModelError(JudgeError):
    """A judge cannot be found, read or run."""


class VerificationError(JudgeError):
    """An exported artefact disagrees with the adapter or the annotators beyond the margins."""


class MissingExtraError(JudgeError):
    """An optional dependency is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of slm-judge brings it.

    Raises:
        MissingExtraError: `module` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        help_ = _LLAMA_HELP if module == "llama_cpp" else ""
        raise MissingExtraError(
            f"This needs the package {module!r}: pip install 'slm-judge[{extra}]'.{help_}"
        ) from None


def require_extra(extra: str) -> None:
    """Refuse to start a stage whose extra is not installed, before any work is done.

    Raises:
        MissingExtraError: names the first package that is missing.
    """
    for module in _EXTRAS[extra]:
        if find_spec(module) is None:
            require(module, extra)


_KEPT = "What was finished is kept, and nothing is half-written; "


def system_message(error: BaseException) -> str | None:
    """What to say where the machine is at its limits, or refuses; None for any other error.

    Only some libraries raise `OSError` where a disk is full; of the others, the operating system's
    words are left in the message.
    """
    for link in causes(error):
        number = getattr(link, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(link):
            free = "free some space and run the same command again."
            return f"No space left on the device. {_KEPT}{free}"
        if number == errno.EFBIG or "File too large" in str(link):
            return (
                f"A file would be larger than this system allows (`ulimit -f`). {_KEPT}raise the "
                "limit and run the same command again."
            )
        if isinstance(link, MemoryError):
            return f"Out of memory. {_KEPT}free some memory and run the same command again."
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}."
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""Errors that a user can act on; the command line prints them and exits with code 2."""

import importlib
from types import ModuleType

_LLAMA_HELP = (
    " It is compiled on installation: install a C++ compiler and make first "
    "(Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install)."
)


class JudgeError(Exception):
    """Something the user can put right. The message says what was expected, what came, what to do."""


class RubricError(JudgeError):
    """The rubric is not valid."""


class DataError(JudgeError):
    """The annotated data, or the rows to annotate, cannot be used as they are."""


class ModelError(JudgeError):
    """A judge cannot be found, read or run."""


class VerificationError(JudgeError):
    """The exported artefacts disagree with the adapter or with the annotators beyond the margins."""


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

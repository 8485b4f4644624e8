"""Annotate texts like your annotators, with a small language model of your own.

from slm_judge import Judge

judge = Judge.from_pretrained("me/my-judge-GGUF")
judge.annotate(["I was charged twice, give me my money back!"])[0].labels
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .judge.answer import Annotation
    from .judge.judge import Judge
    from .rubric import Rubric

__all__ = ["Annotation", "Judge", "Rubric", "__version__"]
_HOMES = {"Annotation": "judge.answer", "Judge": "judge.judge", "Rubric": "rubric"}


def __getattr__(name: str) -> Any:
    """Load what is exported when it is first used: `slm-judge --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)

"""Annotate texts like your annotators, with a small language model of your own.

from slm_judge import Judge

judge = Judge.from_pretrained("me/my-judge-GGUF")
judge.annotate(["I was charged twice, give me my money back!"])[0].labels
"""

from .judge.answer import Annotation
from .judge.judge import Judge
from .rubric import Rubric
from .version import __version__

__all__ = ["Annotation", "Judge", "Rubric", "__version__"]

"""Annotate texts like your annotators, with a small language model of your own.

from slm_judge import Judge

judge = Judge.from_pretrained("me/my-judge-GGUF")
judge.annotate(["I was charged twice, give me my money back!"])[0].labels
"""

from importlib.metadata import version

__version__ = version("slm-judge")

from .annotation import Annotation
from .judge import Judge
from .rubric import Rubric

__all__ = ["Annotation", "Judge", "Rubric", "__version__"]

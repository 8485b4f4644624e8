"""The version of slm-judge, which is saved with whatever it makes."""

from importlib.metadata import version

__version__ = version("slm-judge")

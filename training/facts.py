"""What decides a result, printed at the start and saved with the adapter."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console

from slm_judge.artefact.base import BASE_FILE, Base, base_commit, load_config, locate_base
from slm_judge.errors import ModelError
from slm_judge.recipe import Recipe
from slm_judge.screen import say
from slm_judge.version import __version__

_PACKAGES = (
    "slm-judge", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets",
)  # fmt: skip


def base_settings(recipe: Recipe, started: Path | None = None) -> Base:
    """The recipe's base at the commit where it is now, or was when the run in `started` began.

    Raises:
        ModelError: there is no such base, or no such device.
    """
    on_gpu = torch.cuda.is_available() and recipe.training.device != "cpu"
    if recipe.training.device == "cuda" and not on_gpu:
        raise ModelError("training.device is cuda, but PyTorch finds no CUDA device here.")
    if started and (started / BASE_FILE).is_file():
        commit = Base.load(started).revision
    else:
        commit = base_commit(recipe.base, recipe.base_revision)
    return Base(
        recipe.base,
        revision=commit,
        requested_revision=recipe.base_revision,
        quantization=recipe.quantization,
        dtype="bfloat16" if on_gpu else "float32",  # bfloat16 is slow without AVX512-BF16
        device="cuda" if on_gpu else "cpu",
    )


def context_length(base: Base) -> int:
    """The tokens that a base can read at once.

    Raises:
        ModelError: its configuration cannot be read.
    """
    config = load_config(locate_base(base.base, base.revision, weights=False))
    return getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def print_settings(recipe: Recipe, console: Console) -> None:
    """Print every setting and whether the recipe or the default gave it."""
    for section, values in recipe.model_dump().items():
        model = getattr(recipe, section)
        if not isinstance(values, dict):
            source = "recipe" if section in recipe.model_fields_set else "default"
            say(console, [f"  {section} = {values} ({source})"], "")
            continue
        for key, value in values.items():
            source = "recipe" if key in model.model_fields_set else "default"
            say(console, [f"  {section}.{key} = {value} ({source})"], "")


def versions() -> dict[str, str]:
    """Versions of what decides the result."""
    found = {"python": platform.python_version(), "slm-judge": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

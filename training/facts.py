"""What decides a result, printed at the start and saved with the adapter."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from slm_judge.artefact.base import BASE_FILE, Base, base_commit, load_config, locate_base
from slm_judge.artefact.device import (
    choose_device,
    devices,
    dtype_for_training,
    multiplies_bfloat16,
)
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
    device = choose_device(recipe.training.device, devices())
    dtype = dtype_for_training(recipe.training.dtype, device, multiplies_bfloat16(device))
    if started and (started / BASE_FILE).is_file():
        commit = Base.load(started).revision
    else:
        commit = base_commit(recipe.base, recipe.base_revision)
    return Base(
        recipe.base,
        revision=commit,
        requested_revision=recipe.base_revision,
        quantization=recipe.quantization,
        dtype=dtype,  # type: ignore[arg-type]
        device=device,
    )


def text_config(base: Base) -> Any:
    """The configuration of a base's text part.

    Raises:
        ModelError: it cannot be read.
    """
    config = load_config(locate_base(base.base, base.revision, weights=False))
    return config.get_text_config()


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

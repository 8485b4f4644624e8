"""What decides a result, printed at the start and saved with the adapter."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from slm_judge.errors import ModelError
from slm_judge.recipe import Recipe
from slm_judge.version import __version__

_PACKAGES = (
    "slm-judge", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets",
)  # fmt: skip


def public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they may be published: files by name, without the folders of this machine."""
    public: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            public[key] = public_settings(value)
        else:
            is_path = isinstance(value, str) and Path(value).is_absolute()
            public[key] = Path(value).name if is_path else value
    return public


def base_settings(recipe: Recipe) -> dict[str, Any]:
    """What `load_base` needs, saved with the adapter."""
    on_gpu = torch.cuda.is_available() and recipe.training.device != "cpu"
    if recipe.training.device == "cuda" and not on_gpu:
        raise ModelError("training.device is cuda, but PyTorch finds no CUDA device here.")
    return {
        "base": recipe.base,
        "revision": recipe.base_revision,
        "quantization": recipe.quantization,
        "dtype": "bfloat16" if on_gpu else "float32",  # bfloat16 is slow without AVX512-BF16
        "device": "cuda" if on_gpu else "cpu",
    }


def print_settings(recipe: Recipe, console: Console) -> None:
    """Print every setting and whether the recipe or the default gave it."""
    for section, values in recipe.model_dump().items():
        model = getattr(recipe, section)
        if not isinstance(values, dict):
            source = "recipe" if section in recipe.model_fields_set else "default"
            console.print(f"  {section} = {values} ({source})", highlight=False)
            continue
        for key, value in values.items():
            source = "recipe" if key in model.model_fields_set else "default"
            console.print(f"  {section}.{key} = {value} ({source})", highlight=False)


def versions() -> dict[str, str]:
    """Versions of what decides the result."""
    found = {"python": platform.python_version(), "slm-judge": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

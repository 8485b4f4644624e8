"""The run folder: what each stage leaves for the next."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from .errors import JudgeError
from .files import TEMPORARY, locked, read_back, remove, sweep, write_text
from .recipe import Recipe, public_settings
from .rubric import RUBRIC_FILE, Rubric, explain
from .screen import say

FACTS = "training.json"
"""What training writes beside the adapter: versions, hashes, metrics and time."""

# Sections of the recipe that training does not use.
_AFTER_TRAINING = {"export", "verify", "card"}


@dataclass(frozen=True)
class Run:
    """Paths in the folder of a run."""

    folder: Path

    @classmethod
    def find(cls, location: Path) -> "Run":
        """The run in the folder `location`, or the one that the recipe `location` makes.

        What the recipe says now about the stages after training is kept in the run.

        Raises:
            RecipeError: `location` is a file, but not a recipe.
            JudgeError: the run was trained with other settings.
        """
        if not location.is_file():
            return cls(location)
        recipe = Recipe.from_file(location)
        run = cls(recipe.run_folder)
        if run.recipe_file.is_file():
            run.check_recipe(recipe)
            run.keep_recipe(recipe)
        return run

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process changes the run meanwhile; what killed ones left half-done is removed.

        Raises:
            JudgeError: another process is at work on it.
        """
        with locked(self.folder.resolve()):
            if self.recipe_file.is_file():  # elsewhere nothing is ours
                self._sweep()
            yield

    def _sweep(self) -> None:
        """Not what others, who may be at work, have half-written beside what is the run's own."""
        for place in (self.adapter, self.merged, self.bnb, self.recipe_file,
                      self.folder / RUBRIC_FILE):  # fmt: skip
            sweep(place)
        for folder in (self.adapter, self.merged, self.bnb, self.gguf, self.lora, self.data,
                       self.checkpoints, self.report, self.seeds):  # fmt: skip
            for left in list(folder.rglob(f"{TEMPORARY}*")):
                remove(left)

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse a recipe with which training would have been another.

        Raises:
            JudgeError: names the settings.
        """
        if changed := sorted(self._changed(recipe) - _AFTER_TRAINING):
            raise JudgeError(
                f"{self.folder} was trained, or started, with other settings of "
                f"{', '.join(changed)}. Put back those of {self.recipe_file}, or start over with "
                "`slm-judge train RECIPE --overwrite`."
            )

    def keep_recipe(self, recipe: Recipe) -> None:
        """Write the recipe, and say what changed in it."""
        if changed := sorted(self._changed(recipe)) if self.recipe_file.is_file() else []:
            said = f"{self.recipe_file} has the new settings of {', '.join(changed)} from now on."
            say(Console(stderr=True), [said])
        write_text(self.recipe_file, recipe.model_dump_json(indent=2) + "\n")

    def _changed(self, recipe: Recipe) -> set[str]:
        """The keys with other values than in the run; of files, the names count: folders move."""
        old, new = (public_settings(one.model_dump()) for one in (self.recipe(), recipe))
        return {key for key in new if new[key] != old[key]}

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.folder / "recipe.json"

    @property
    def data(self) -> Path:
        """The splits, a JSON Lines file each."""
        return self.folder / "data"

    @property
    def checkpoints(self) -> Path:
        """The trainer's checkpoints, for `--resume`."""
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The best checkpoint's adapter, a complete judge on its base."""
        return self.folder / "adapter"

    @property
    def merged(self) -> Path:
        """Base and adapter in one model."""
        return self.folder / "merged"

    @property
    def bnb(self) -> Path:
        """The judge in bitsandbytes NF4."""
        return self.folder / "bnb-4bit"

    @property
    def gguf(self) -> Path:
        """GGUF files."""
        return self.folder / "gguf"

    @property
    def lora(self) -> Path:
        """The base and the adapter as GGUF files of their own (`export --lora`)."""
        return self.folder / "gguf-lora"

    @property
    def report(self) -> Path:
        """What was measured."""
        return self.folder / "report"

    @property
    def predictions(self) -> Path:
        """What each artefact said about the test items, a JSON Lines file each."""
        return self.report / "predictions"

    @property
    def validation(self) -> Path:
        """What the adapter said about the validation items, JSON Lines."""
        return self.report / "validation.jsonl"

    @property
    def seeds(self) -> Path:
        """What `train --seeds` keeps of each seed, a folder each."""
        return self.folder / "seeds"

    def of_seed(self, seed: int) -> "Run":
        """Where one of several seeds has its adapter, predictions and checkpoints, and no more."""
        return Run(self.seeds / str(seed))

    def gguf_file(self, quantization: str) -> Path:
        """The GGUF file of a quantization."""
        return self.gguf / f"{self.recipe().name}-{quantization}.gguf"

    def lora_file(self, quantization: str = "") -> Path:
        """The GGUF file of the adapter, or that of its base in a quantization."""
        name = f"base-{quantization}" if quantization else f"{self.recipe().name}-lora"
        return self.lora / f"{name}.gguf"

    def recipe(self) -> Recipe:
        """The recipe that made the run.

        Raises:
            JudgeError: the folder is not that of a run.
        """
        if not self.recipe_file.is_file():
            raise JudgeError(
                f"{self.folder} is not a run: it has no recipe.json. Make one with "
                "`slm-judge train RECIPE`."
            )
        try:
            return Recipe.model_validate_json(self.recipe_file.read_bytes())
        except ValidationError as error:
            raise JudgeError(f"{self.recipe_file} is not valid:\n{explain(error)}") from error

    def rubric(self) -> Rubric:
        """The rubric that was trained, whatever has become of its file since.

        Raises:
            JudgeError: there is no adapter yet.
        """
        path = self.require(self.adapter / RUBRIC_FILE, f"train {self.recipe_file}")
        return Rubric.from_json(path.read_bytes(), str(path))

    def facts(self) -> dict[str, Any]:
        """What training wrote beside the adapter.

        Raises:
            JudgeError: it is damaged.
        """
        return read_back(self.adapter / FACTS, "train again with --overwrite")

    def require(self, path: Path, command: str) -> Path:
        """`path`, or an error naming the command that makes it.

        Raises:
            JudgeError: an earlier stage has not run.
        """
        self.recipe()
        if not path.exists():
            raise JudgeError(f"{path} is missing; run `slm-judge {command}` first.")
        return path

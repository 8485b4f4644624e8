"""The run's folder: claimed, kept, resumed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slm_judge.artefact.base import Base
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.item import Item, load_split
from slm_judge.errors import JudgeError
from slm_judge.files import atomic_folder, write_json
from slm_judge.recipe import Recipe
from slm_judge.run import Run


def check_folder(run: Run, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Refuse to start where an earlier run would be lost, or to resume with other settings.

    Raises:
        JudgeError: says what to choose.
    """
    if resume and overwrite:
        raise JudgeError("--resume goes on with a run, --overwrite throws it away: choose one.")
    if resume and run.recipe_file.exists():
        run.check_recipe(recipe)
    elif run.folder.exists() and overwrite and not run.recipe_file.exists():
        raise JudgeError(
            f"{run.folder} is not a run (it has no recipe.json), so --overwrite leaves it alone. "
            "Move it away, or give the recipe another name or output."
        )
    elif run.folder.exists() and not (resume or overwrite):
        raise JudgeError(
            f"{run.folder} exists. Continue it with --resume, throw it away with --overwrite, or "
            "give the recipe another name or output."
        )


def check_splits(run: Run, splits: dict[str, list[Item]]) -> None:
    """Refuse to resume a run with other data.

    Raises:
        JudgeError: the splits differ.
    """
    if {name: load_split(run.data, name) for name in splits} != splits:
        raise JudgeError(
            f"The data changed since {run.folder} was started. Put the old data back, or start "
            "over with --overwrite."
        )


def give_back(run: Run) -> None:
    """Put the earlier run back where its successor was killed before its first checkpoint."""
    earlier = _earlier(run)
    if earlier.exists() and last_checkpoint(run.checkpoints) is None and not run.adapter.exists():
        shutil.rmtree(run.folder, ignore_errors=True)
        earlier.rename(run.folder)


def _earlier(run: Run) -> Path:
    """Where the run that is being overwritten waits for its successor's first checkpoint."""
    return run.folder.with_name(f".{run.folder.name}-earlier")


@contextmanager
def claimed(run: Run, overwrite: bool) -> Iterator[None]:
    """The run's folder while it is trained.

    Where training breaks off before its first checkpoint, the folder is as it was before: none, or
    the earlier run that was to be overwritten.
    """
    earlier = _earlier(run)
    fresh = overwrite or not run.folder.exists()
    if overwrite and run.folder.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        run.folder.rename(earlier)
    try:
        yield
    except BaseException:
        if fresh and last_checkpoint(run.checkpoints) is None:
            shutil.rmtree(run.folder, ignore_errors=True)
            give_back(run)
        raise
    finally:
        if run.folder.exists():
            shutil.rmtree(earlier, ignore_errors=True)


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; the trainer's state is written last."""
    checkpoints = sorted(
        folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), reverse=True
    )
    for checkpoint in checkpoints:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        return str(checkpoint)
    return None


def save_adapter(
    folder: Path,
    model: Any,
    tokenizer: Any,
    contract: Contract,
    base: Base,
    facts: dict[str, Any],
) -> None:
    """Write a complete judge: adapter, tokenizer, contract, and how it was made."""
    # The base's name as in the recipe, not the folder that it was loaded from on this machine.
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base.base, base.revision
    with atomic_folder(folder) as work:
        model.save_pretrained(work, save_embedding_layers=False)
        tokenizer.save_pretrained(work)
        contract.save(work)
        base.save(work)
        write_json(work / "training.json", facts)

"""The run's folder: claimed, kept, resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

from slm_judge.artefact.judge_files import Contract
from slm_judge.data.item import Item, load_split, save_splits
from slm_judge.errors import JudgeError
from slm_judge.files import atomic_folder, write_text
from slm_judge.recipe import Recipe
from slm_judge.run import Run


def claim(run: Run, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Make sure that no earlier run is lost and that a resumed one has the same settings."""
    if resume and run.recipe_file.exists() and run.recipe() != recipe:
        raise JudgeError(
            f"{run.folder} was started with other settings; resume it with the recipe it was "
            "started with, or start over with --overwrite."
        )
    if resume or not run.folder.exists():
        return
    if not overwrite:
        raise JudgeError(
            f"{run.folder} exists. Continue it with --resume, throw it away with --overwrite, or "
            "give the recipe another name or output."
        )
    shutil.rmtree(run.folder)


def keep_splits(run: Run, splits: dict[str, list[Item]]) -> None:
    """Write the splits of a new run; a resumed one must have the same."""
    if not run.recipe_file.exists():
        save_splits(splits, run.data)
    elif {name: load_split(run.data, name) for name in splits} != splits:
        raise JudgeError(
            f"The data changed since {run.folder} was started. Put the old data back, or start "
            "over with --overwrite."
        )


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
    base: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Write a complete judge: adapter, tokenizer, contract, and how it was made."""
    # The base's name as in the recipe, not the folder that it was loaded from on this machine.
    model.peft_config["default"].base_model_name_or_path = base["base"]
    with atomic_folder(folder) as work:
        model.save_pretrained(work, save_embedding_layers=False)
        tokenizer.save_pretrained(work)
        contract.save(work)
        write_text(work / "base.json", json.dumps(base, indent=2) + "\n")
        write_text(work / "training.json", json.dumps(facts, indent=2) + "\n")

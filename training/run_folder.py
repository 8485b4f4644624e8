"""The run's folder: claimed, kept, resumed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open

from slm_judge.artefact.base import Base
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.item import Item, load_split, save_splits
from slm_judge.errors import JudgeError
from slm_judge.files import atomic_folder, remove, write_json, write_text
from slm_judge.offline.smollm2 import REPOSITORY
from slm_judge.recipe import Recipe, public_settings
from slm_judge.rubric import RUBRIC_FILE, Rubric
from slm_judge.run import FACTS, Run

Splits = dict[str, list[Item]]


def check_folder(run: Run, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    """Refuse to start where something would be lost, or to resume with other settings.

    `slm-judge baselines` may have made the folder, with a report in it.

    Raises:
        JudgeError: says what to choose.
    """
    if resume and overwrite:
        raise JudgeError("--resume goes on with a run, --overwrite throws it away: choose one.")
    if not run.recipe_file.exists():
        if run.folder.is_file() or any(path != run.report for path in run.folder.glob("*")):
            raise JudgeError(
                f"{run.folder} is not a run (it has no recipe.json), but it holds something. Move "
                "it away, or give the recipe another name or output."
            )
    elif resume:
        run.check_recipe(recipe)
    elif not overwrite:
        raise JudgeError(
            f"{run.folder} exists. Continue it with --resume, throw it away with --overwrite, or "
            "give the recipe another name or output."
        )


def keep(run: Run, recipe: Recipe, base: Base, rubric: Rubric, splits: Splits) -> None:
    """Write what a resumed run, and every later stage, goes by; the recipe, which makes it a run,
    last.
    """
    save_splits(splits, run.data)
    base.save(run.folder)
    write_text(run.folder / RUBRIC_FILE, rubric.to_json())
    run.keep_recipe(recipe)


def check_same(run: Run, rubric: Rubric, splits: Splits) -> None:
    """Refuse to resume a run with another rubric or other data.

    Raises:
        JudgeError: says which.
    """
    kept = run.folder / RUBRIC_FILE  # absent in runs of earlier versions
    changed = ""
    if kept.exists() and kept.read_text(encoding="utf-8") != rubric.to_json():
        changed = "rubric"
    elif {name: load_split(run.data, name) for name in splits} != splits:
        changed = "data"
    if changed:
        raise JudgeError(
            f"The {changed} changed since {run.folder} was started. Put the old {changed} back, "
            "or start over with --overwrite."
        )


def give_back(run: Run) -> None:
    """Put the earlier run back where its successor was killed before its first checkpoint."""
    earlier = _earlier(run)
    if earlier.exists() and last_checkpoint(run.checkpoints) is None and not run.adapter.exists():
        shutil.rmtree(run.folder.resolve(), ignore_errors=True)
        earlier.rename(run.folder.resolve())


_BOUGHT = "openai-*.jsonl"
"""What servers answered to `slm-judge baselines`, which no training changes."""


def _earlier(run: Run) -> Path:
    """Where the run that is being overwritten waits for its successor's first checkpoint."""
    folder = run.folder.resolve()  # which a link may lead to
    return folder.with_name(f".{folder.name}-earlier")


@contextmanager
def claimed(run: Run, overwrite: bool) -> Iterator[None]:
    """The run's folder while it is trained.

    Where training breaks off before its first checkpoint, the folder is as it was before: none, or
    the earlier run that was to be overwritten.
    """
    earlier = _earlier(run)
    fresh = overwrite or not run.recipe_file.exists()
    if overwrite and run.recipe_file.exists():
        remove(earlier)
        run.folder.resolve().rename(earlier)
        run.folder.resolve().mkdir()
        for answers in Run(earlier).report.glob(_BOUGHT):
            run.report.mkdir(parents=True, exist_ok=True)
            shutil.copy2(answers, run.report)
    try:
        yield
    except BaseException:
        if fresh and last_checkpoint(run.checkpoints) is None and not run.adapter.exists():
            _clear(run)
            give_back(run)
        raise
    finally:
        if run.folder.exists():
            shutil.rmtree(earlier, ignore_errors=True)


def _clear(run: Run) -> None:
    """Remove the folder, but for a report that was there before training."""
    if not run.report.exists():
        shutil.rmtree(run.folder, ignore_errors=True)
    for path in set(run.folder.glob("*")) - {run.report}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


_CHECKPOINT = {"trainer_state.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt"}


def last_checkpoint(folder: Path, notes: list[str] | None = None) -> str | None:
    """The newest checkpoint that is whole; `notes` gets a line for each that is passed over."""
    found = {path: path.name.partition("-")[2] for path in folder.glob("checkpoint-*")}
    own = [path for path, step in found.items() if step.isdecimal() and path.is_dir()]
    checkpoints = sorted(own, key=lambda path: int(found[path]), reverse=True)
    for checkpoint in checkpoints:
        if not (damage := _damage(checkpoint)):
            return str(checkpoint)
        if notes is not None:
            notes.append(f"{checkpoint} is passed over, since it is not whole: {damage}.")
    return None


def _damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, which a crash may have cut off; "" for nothing."""
    files = {path.name: path for path in checkpoint.iterdir()}
    if missing := _CHECKPOINT - files.keys():
        return f"it has no {', '.join(sorted(missing))}"
    try:
        for name, path in files.items():
            if name.endswith(".json"):
                json.loads(path.read_text(encoding="utf-8"))
            elif name.endswith(".safetensors"):
                with safe_open(path, "np") as opened:
                    opened.keys()
            elif name.endswith((".pt", ".pth")):
                with ZipFile(path) as opened:  # as torch.save writes them, with checksums
                    if bad := opened.testzip():
                        return f"{name} is damaged ({bad})"
    except (OSError, ValueError, BadZipFile, SafetensorError) as error:
        return f"{name} is damaged ({error})"
    return ""


def save_adapter(
    folder: Path,
    model: Any,
    tokenizer: Any,
    contract: Contract,
    base: Base,
    facts: dict[str, Any],
) -> None:
    """Write a complete judge: adapter, tokenizer, contract, and how it was made."""
    # Neither the folder that the base was loaded from on this machine, nor a name of our own where
    # the Hub has one; what we load it by ourselves is in `base.json`.
    config = model.peft_config["default"]
    name = REPOSITORY if base.base == "smollm2" else public_settings({"base": base.base})["base"]
    config.base_model_name_or_path, config.revision = name, base.revision
    with atomic_folder(folder) as work:
        model.save_pretrained(work, save_embedding_layers=False)
        tokenizer.save_pretrained(work)
        contract.save(work)
        base.save(work)
        write_json(work / FACTS, facts)

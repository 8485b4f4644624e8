"""The exported artefacts of a run, and the files that each is made of."""

from pathlib import Path, PurePath

from slm_judge.artefact.base import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_FILE
from slm_judge.artefact.judge_files import ADAPTER_FOLDER, FILES, QUESTIONS, adapter_beside
from slm_judge.run import FACTS, Run

ADAPTER = "adapter"
# Weights, configuration, tokenizer and contract, by the names that libraries and slm-judge write.
_PARTS = (
    *("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json"),
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "tekken.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", ADAPTER_CONFIG, ADAPTER_WEIGHTS),
    *(BASE_FILE, FACTS, QUESTIONS, *FILES),
)
BESIDE = (f"{ADAPTER_FOLDER}/{ADAPTER_CONFIG}", f"{ADAPTER_FOLDER}/{ADAPTER_WEIGHTS}")
"""The adapter that a bitsandbytes file may have beside its base."""


def artefacts(run: Run) -> dict[str, Path]:
    """The exported artefacts by name, the adapter first.

    Raises:
        JudgeError: some are not there yet.
    """
    found = {ADAPTER: run.adapter, "merged": run.merged, "bnb-4bit": run.bnb}
    found |= {name: run.gguf_file(name) for name in run.recipe().export.gguf}
    for path in found.values():
        run.require(path, f"export {run.folder}")
    return found


def parts(path: Path) -> list[Path]:
    """The files of an artefact; what else lies in its folder, somebody put there."""
    if path.is_file():
        return [path]
    files = [file for file in path.iterdir() if is_part(file.name)]
    if adapter_beside(path):
        files += [path / name for name in BESIDE]
    return sorted(file for file in files if file.is_file())


def is_part(name: str) -> bool:
    """Whether a file of this name belongs to the folder of an artefact."""
    return any(map(PurePath(name).match, _PARTS))

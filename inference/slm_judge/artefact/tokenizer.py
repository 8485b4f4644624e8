"""A tokenizer as its file says, and as llama.cpp reads the same vocabulary."""

import json
import re
from pathlib import Path
from typing import Any

_FILE = "tokenizer.json"


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, with the same tokens in both engines for every text."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # Classes that a configuration names (`GPT2Tokenizer`) part texts by a rule of their own,
    # whatever the file says, and would do so again wherever the judge is loaded.
    if type(tokenizer) is not PreTrainedTokenizerFast and (folder / _FILE).is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        _part_as_llama_cpp(backend)
    return tokenizer


def _part_as_llama_cpp(backend: Any) -> None:
    r"""Part words as llama.cpp does where that is another way.

    "Digits" knows those of Unicode 17, `\p{N}` does not. And where a byte is no token, both engines
    drop it, but then llama.cpp does not join what stood around it.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Sequence

    if not backend.pre_tokenizer:
        return
    state = json.loads(backend.pre_tokenizer.__getstate__())
    old = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    new = [_digits(step) if step["type"] == "Digits" else step for step in old]
    lost = [re.escape(byte) for byte in ByteLevel.alphabet() if backend.token_to_id(byte) is None]
    dropped = _split(f"[{''.join(sorted(lost))}]", "Removed")
    if lost and new[-1]["type"] == "ByteLevel":
        new.append(dropped)
    if new != old:
        parting = Sequence([])
        parting.__setstate__(json.dumps({"type": "Sequence", "pretokenizers": new}).encode())
        backend.pre_tokenizer = parting


def _digits(step: dict[str, Any]) -> dict[str, Any]:
    return _split(r"\p{N}" if step["individual_digits"] else r"\p{N}+", "Isolated")


def _split(pattern: str, behavior: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False
    }  # fmt: skip

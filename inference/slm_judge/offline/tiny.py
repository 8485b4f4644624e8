"""The offline base, called "tiny" in recipes: a small Qwen3 with random weights.

It has the real Qwen2 tokenizer. It lets the whole path run, test and be timed where no model can
be downloaded. It knows no language, so what it learns comes from the training data alone.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from .llama_source import cache_folder, llama_cpp_source

_VERSION = 5  # of the recipe below; part of the cached folder's name

# The dialogue format of Qwen (ChatML), written out because the vocabulary file carries none.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)

# Widths are multiples of 256, the block size of llama.cpp's K-quants, so that Q4_K_M is real.
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 151936,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,  # so that the input embeddings can be trained (embedding_r)
    # 1 / sqrt(hidden_size): with 0.02 the frozen output rows are too short to tell labels apart.
    "initializer_range": 0.0625,
}


def qwen_tokenizer() -> Any:
    """The Qwen2 tokenizer, from the vocabulary that llama.cpp's sources carry; cached."""
    from transformers import AutoTokenizer

    folder = cache_folder() / f"qwen2-tokenizer-{_VERSION}"
    if not folder.exists():
        models = llama_cpp_source() / "models"
        tokenizer = AutoTokenizer.from_pretrained(models, gguf_file="ggml-vocab-qwen2.gguf")
        _save_atomically(_without_padding_tokens(tokenizer), folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _without_padding_tokens(tokenizer: Any) -> Any:
    """Drop the `[PAD151646]`... that fill a GGUF vocabulary; Qwen's own tokenizer has none."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["normalizer"] = {"type": "NFC"}  # as in the tokenizer.json of Qwen
    state["added_tokens"] = [
        token for token in state["added_tokens"] if not token["content"].startswith("[PAD")
    ]
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {
        token: index for token, index in vocabulary.items() if not token.startswith("[PAD")
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template=CHAT_TEMPLATE,
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
    )


def tiny_base(seed: int = 0, **shape: Any) -> Path:
    """The folder of a tiny base, built at the first call and cached.

    Args:
        seed: of the random weights.
        shape: overrides of `SHAPE` (keys of `Qwen3Config`).

    Returns:
        A folder that `from_pretrained` of transformers loads.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = SHAPE | shape
    kind = "-".join(str(shape[key]) for key in sorted(shape))
    folder = cache_folder() / f"tiny-{_VERSION}-{seed}-{kind}"
    if not folder.exists():
        tokenizer = qwen_tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen3ForCausalLM(Qwen3Config(**shape, dtype="float32"))
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.config.eos_token_id = tokenizer.eos_token_id
        _save_atomically(model, folder, tokenizer)
    return folder


def _save_atomically(artefact: Any, folder: Path, *more: Any) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        for part in (artefact, *more):
            part.save_pretrained(work)
        try:
            Path(work).rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
        Path(work).mkdir(exist_ok=True)  # for the context manager to remove

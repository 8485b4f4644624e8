"""Judges of a few megabytes with the first tokens of a real vocabulary, made to be damaged."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm_judge.artefact.judge_files import QUESTION_TYPES, Contract
from slm_judge.run import Run

N_TOKENS = 1500  # of the vocabulary's start: all bytes and the commonest pieces


@dataclass
class Gguf:
    """What a GGUF file holds, to be written again with changes."""

    architecture: str
    keys: dict[str, tuple[Any, Any, Any]]
    """Name -> type, value, type of an array's values."""
    tensors: dict[str, tuple[Any, Any]]
    """Name -> array as it lies in the file, type."""

    @classmethod
    def read(cls, path: Path) -> "Gguf":
        """Read a file."""
        from gguf import GGUFReader, GGUFValueType

        reader = GGUFReader(path)
        keys = {}
        for name, field in reader.fields.items():
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            if not name.startswith("GGUF.") and name != "general.architecture":
                keys[name] = (field.types[0], field.contents(), inner)
        tensors = {t.name: (np.array(t.data), t.tensor_type) for t in reader.tensors}
        return cls(reader.fields["general.architecture"].contents(), keys, tensors)

    def write(self, path: Path, changes: Mapping[str, Any] | None = None) -> Path:
        """Write a file.

        Args:
            path: of the file.
            changes: key -> another value, or None to leave it out.
        """
        from gguf import GGUFWriter

        writer = GGUFWriter(path, arch=self.architecture)
        for name, (kind, given, inner) in self.keys.items():
            value = (changes or {}).get(name, given)
            if value is not None:
                writer.add_key_value(name, value, kind, sub_type=inner)
        for name, (data, kind) in self.tensors.items():
            writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for data, _ in self.tensors.values():
            writer.write_tensor_data(data)
        writer.close()
        return path


def small_gguf(folder: Path, path: Path) -> Path:
    """The judge in `folder` as a GGUF file, without llama.cpp's converter, which takes no part of a
    vocabulary.
    """
    from gguf import GGMLQuantizationType, GGUFValueType
    from safetensors.numpy import load_file

    from slm_judge.artefact.calibration import as_json
    from slm_judge.backends.gguf import CALIBRATION_KEY, RUBRIC_KEY, TEMPLATE_NAME

    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    contract = Contract.load(folder)
    control = [token["content"] for token in tokenizer["added_tokens"]]
    tokens = [*tokenizer["model"]["vocab"], *control]
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    numbers = {
        "block_count": config["num_hidden_layers"], "context_length": 4096,
        "embedding_length": config["hidden_size"], "attention.head_count": heads[0],
        "feed_forward_length": config["intermediate_size"], "attention.head_count_kv": heads[1],
        "attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"],
    }  # fmt: skip
    floats = {"rope.freq_base": 10_000.0, "attention.layer_norm_rms_epsilon": 1e-6}
    floats |= {f"decision.temperature.{k}": contract.temperature(k) for k in QUESTION_TYPES}
    texts = {
        "general.name": "small", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
        "qwen3.decision.type": "nimble", RUBRIC_KEY: contract.rubric.to_json(),
        CALIBRATION_KEY: as_json(contract.calibrations),
        f"tokenizer.chat_template.{TEMPLATE_NAME}": contract.systemone_template,
    }  # fmt: skip
    arrays = {
        "tokens": (tokens, GGUFValueType.STRING),
        "token_type": ([1] * N_TOKENS + [3] * len(control), GGUFValueType.INT32),
        "merges": ([" ".join(m) for m in tokenizer["model"]["merges"]], GGUFValueType.STRING),
    }
    number, real, text = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING
    keys: dict[str, tuple[Any, Any, Any]] = {
        **{f"qwen3.{name}": (number, value, None) for name, value in numbers.items()},
        **{f"qwen3.{name}": (real, value, None) for name, value in floats.items()},
        **{name: (text, value, None) for name, value in texts.items()},
        **{f"tokenizer.ggml.{name}": (GGUFValueType.ARRAY, *v) for name, v in arrays.items()},
        "tokenizer.ggml.eos_token_id": (number, len(tokens) - 1, None),
    }
    weights = load_file(folder / "model.safetensors")
    tensors = {_gguf_name(name): (data, GGMLQuantizationType.F32) for name, data in weights.items()}
    return Gguf("qwen3", keys, tensors).write(path)


def _gguf_name(name: str) -> str:
    for old, new in (
        ("model.embed_tokens", "token_embd"), ("lm_head", "output"), ("model.norm", "output_norm"),
        ("model.layers", "blk"), ("self_attn.o_proj", "attn_output"), ("self_attn.", "attn_"),
        ("mlp.", "ffn_"), ("_proj", ""), ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ):  # fmt: skip
        name = name.replace(old, new)
    return name


def _merges(merges: list[str], tokens: set[str]) -> list[str]:
    return [m for m in merges if m.replace(" ", "") in tokens and set(m.split()) <= tokens]


def small_folders(run: Run, folder: Path) -> None:
    """`merged`, `bnb-4bit` and `adapter` on `base`, with a small vocabulary and random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from slm_judge.artefact.base import Base, load_base, load_model, nf4

    tokenizer = small_tokenizer(run.merged)
    contract = Contract.build(run.rubric(), tokenizer)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**shape, vocab_size=len(tokenizer)))
    base = Base(str(folder / "base"), quantization="nf4")
    for name in ("base", "merged", "bnb-4bit", "adapter"):
        tokenizer.save_pretrained(folder / name)
        contract.save(folder / name)
    model.save_pretrained(folder / "base")
    model.save_pretrained(folder / "merged")
    load_model(
        folder / "base", "cpu", "float32", quantization_config=nf4("float32")
    ).save_pretrained(folder / "bnb-4bit")
    adapter = get_peft_model(load_base(base, "cpu"), LoraConfig(r=4, target_modules="all-linear"))
    adapter.save_pretrained(folder / "adapter")
    base.save(folder / "adapter")


def small_tokenizer(source: Path) -> Any:
    """The tokenizer in `source` without most of its vocabulary."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    whole = AutoTokenizer.from_pretrained(source)
    state = json.loads(whole.backend_tokenizer.to_str())
    model = state["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < N_TOKENS}
    pairs = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    model["merges"] = [m.split(" ") for m in _merges(pairs, set(model["vocab"]))]
    for number, token in enumerate(state["added_tokens"]):
        token["id"] = N_TOKENS + number
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template=whole.chat_template,
        eos_token=whole.eos_token,
        pad_token=whole.pad_token,
    )


def small_judges(run: Run, folder: Path) -> Path:
    """All of them; `folder` is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    small_folders(run, folder)
    small_gguf(folder / "merged", folder / "judge.gguf")
    return folder

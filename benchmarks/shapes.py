"""Models of real shapes with random weights, and made-up data of real shapes."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_judge.data.item import Item
from slm_judge.rubric import Rubric

ROOT = Path(__file__).parents[1]

# Of the published configurations of Qwen3. Speed and memory do not depend on the weights' values.
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "0.6b": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "tie_word_embeddings": True, "initializer_range": 0.02,
    },
    "1.7b": {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "tie_word_embeddings": True, "initializer_range": 0.02,
    },
}  # fmt: skip


@dataclass(frozen=True)
class DataShape:
    """A rubric, and how long the items are."""

    rubric: str
    words: tuple[int, int]
    """Of each field, fewest and most."""


DATA = {
    "goemotions": DataShape("emotion", (5, 25)),
    "popquorn": DataShape("offensiveness", (10, 70)),
    "convabuse": DataShape("abuse", (3, 15)),
    "answer-quality": DataShape("answer-quality", (150, 350)),
}

_WORDS = """
the a of to and in that it is was for on are as with they be at one have this from or had by hot
word but what some we can out other were all there when up use your how said an each she which do
their time if will way about many then them write would like so these her long make thing see him
two has look more day could go come did number sound no most people my over know water than call
first who may down side been now find any new work part take get place made
""".split()  # noqa: SIM905


def rubric_of(shape: str) -> Rubric:
    """The rubric of a data shape."""
    return Rubric.from_file(ROOT / "rubrics" / f"{DATA[shape].rubric}.yaml")


def make_items(shape: str, n_items: int, seed: int = 0) -> list[Item]:
    """Items of a data shape with random words and votes, each text different."""
    rng = random.Random(seed)  # noqa: S311
    rubric, (fewest, most) = rubric_of(shape), DATA[shape].words
    items = []
    for number in range(n_items):
        state = {
            field: f"{number} " + " ".join(rng.choices(_WORDS, k=rng.randint(fewest, most)))
            for field in rubric.fields
        }
        votes = {d.name: {"": rng.randrange(len(d.options))} for d in rubric.dimensions}
        items.append(Item(f"i{number}", state, votes, f"i{number}"))
    return items


def base_of(model: str) -> Path:
    """A base with random weights, cached; of 16 bits, where there is a GPU to make them on."""
    import torch

    from slm_judge.files import atomic_folder
    from slm_judge.offline.llama_source import cache_folder
    from slm_judge.offline.tiny import SHAPE, qwen_tokenizer, tiny_base

    folder = cache_folder() / "benchmarks" / f"{model}-bfloat16"
    if not torch.cuda.is_available() or not MODELS[model]:
        return tiny_base(**MODELS[model])
    if not folder.exists():
        from transformers import Qwen3Config, Qwen3ForCausalLM

        tokenizer = qwen_tokenizer()
        with atomic_folder(folder) as work, torch.device("cuda"):
            config = Qwen3Config(**SHAPE | MODELS[model], pad_token_id=tokenizer.pad_token_id)
            Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(work)
            tokenizer.save_pretrained(work)
    return folder


def judge_folder(model: str, data: str) -> Path:
    """A judge with random weights as a folder that transformers loads, cached."""
    from slm_judge.artefact.base import load_tokenizer
    from slm_judge.artefact.judge_files import Contract
    from slm_judge.files import atomic_folder
    from slm_judge.offline.llama_source import cache_folder

    base = base_of(model)
    folder = cache_folder() / "benchmarks" / f"{base.name}-{data}"
    if not folder.exists():
        with atomic_folder(folder) as work:
            for file in base.iterdir():
                (work / file.name).symlink_to(file)
            Contract.build(rubric_of(data), load_tokenizer(base)).save(work)
    return folder


def judge_gguf(model: str, data: str, quantization: str = "Q4_K_M") -> Path:
    """The same judge as a GGUF file, cached."""
    from slm_judge.export.gguf import add_keys, convert, quantize

    from slm_judge.artefact.judge_files import Contract
    from slm_judge.files import atomic_file

    folder = judge_folder(model, data)
    output = folder.with_name(f"{folder.name}-{quantization}.gguf")
    if not output.exists():
        with (
            atomic_file(output.with_suffix(".bf16")) as converted,
            atomic_file(output.with_suffix(".judge")) as judge,
            atomic_file(output) as path,
        ):
            converted.unlink()
            convert(folder, converted, "bf16", model)
            add_keys(converted, judge, Contract.load(folder))
            quantize(judge, path, quantization)
        output.with_suffix(".bf16").unlink()
        output.with_suffix(".judge").unlink()
    return output


def asked(folder: Path, gguf: Path, data: str, work: Path) -> tuple[Path, Path]:
    """The weights of a judge's folder and of its GGUF file, asked the rubric of a data shape."""
    from slm_judge.export.gguf import add_keys

    from slm_judge.artefact.base import load_tokenizer
    from slm_judge.artefact.judge_files import Contract

    contract, other = Contract.build(rubric_of(data), load_tokenizer(folder)), work / data
    other.mkdir()
    for file in folder.resolve().iterdir():
        if file.suffix == ".safetensors":
            (other / file.name).symlink_to(file)
        else:
            (other / file.name).write_bytes(file.read_bytes())
    contract.save(other)
    return other, add_keys(gguf, work / f"{data}.gguf", contract)

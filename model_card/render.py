"""The model card of each repository, from the run's own numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from slm_judge.recipe import Recipe
from slm_judge.rubric import Rubric

TAGS = ["decision-model", "system-one", "slm-judge"]
_KINDS = {
    "": ("finetune", "transformers", "the judge in 16 bits"),
    "lora": ("adapter", "peft", "the adapter alone"),
    "bnb-4bit": ("quantized", "transformers", "the judge in bitsandbytes 4-bit (NF4)"),
    "GGUF": ("quantized", "gguf", "the judge as GGUF files, for llama.cpp"),
}


def repository_names(user: str, name: str) -> dict[str, str]:
    """Kind of artefact -> its repository on the Hub."""
    return {kind: f"{user}/{name}{'-' + kind if kind else ''}" for kind in _KINDS}


def render_card(
    kind: str,
    user: str,
    recipe: Recipe,
    rubric: Rubric,
    facts: Mapping[str, Any],
    report: Mapping[str, Any],
) -> str:
    """The README.md of one of the four repositories.

    Args:
        kind: "" (merged), "lora", "bnb-4bit" or "GGUF".
        user: user or organisation on the Hub.
        recipe: of the run.
        rubric: of the judge.
        facts: `training.json` of the adapter.
        report: `verify.json` of the run.
    """
    names = repository_names(user, recipe.name)
    environment = SandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=False, lstrip_blocks=False, autoescape=False
    )
    source = (Path(__file__).parent / "card.md.jinja").read_text(encoding="utf-8")
    body = environment.from_string(source).render(
        name=recipe.name,
        kind=kind,
        this=names[kind],
        repos=[(names[other], what) for other, (_, _, what) in _KINDS.items()],
        summary=f"Annotates {_list(rubric.fields)} for {_list(list(rubric.questions()))}.",
        example=_example(rubric),
        questions=rubric.questions(),
        quantization=recipe.export.gguf[0],
        rubric=rubric,
        facts=facts,
        report=report,
        artefacts=list(next(iter(report["dimensions"].values()))["artefacts"]),
    )
    return f"---\n{_metadata(kind, names, recipe).to_yaml()}\n---\n\n{body}"


def _metadata(kind: str, names: Mapping[str, str], recipe: Recipe) -> ModelCardData:
    relation, library, _ = _KINDS[kind]
    # A base that is a folder, or the offline one, has no name on the Hub.
    on_hub = recipe.base.count("/") == 1 and not Path(recipe.base).exists()
    quantized = relation == "quantized"
    return ModelCardData(
        base_model=names[""] if quantized else recipe.base if on_hub else None,
        base_model_relation=relation if quantized or on_hub else None,
        library_name=library,
        pipeline_tag="text-classification",
        tags=TAGS,
    )


def _example(rubric: Rubric) -> str:
    if len(rubric.fields) == 1:
        return '"The text to judge."'
    return "{" + ", ".join(f'"{field}": "The {field}."' for field in rubric.fields) + "}"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"

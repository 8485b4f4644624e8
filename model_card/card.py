"""The model card of each repository, from the run's own numbers.

What the `card` of a recipe says is Markdown, since whoever publishes the card wrote it for that.
All else that comes from files (labels, instructions, groups, names) is shown as it stands there.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import (
    DatasetCardData,
    EvalResult,
    EvalResultEntry,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from slm_judge.offline.smollm2 import REPOSITORY
from slm_judge.recipe import Recipe, public_settings
from slm_judge.rubric import Rubric, format_value

from .markdown import Markdown, block, code, escape, lines
from .page import FIGURES, bias_sentences, interval, number, significant, whose

_HUB = "https://huggingface.co"
TAGS = ["decision-model", "system-one", "slm-judge"]
_KINDS = {
    "": ("finetune", "transformers", "the judge in 16 bits"),
    "lora": ("adapter", "peft", "the adapter alone"),
    "bnb-4bit": ("quantized", "transformers", "the judge in bitsandbytes 4-bit (NF4)"),
    "GGUF": ("quantized", "gguf", "the judge as GGUF files, for llama.cpp"),
}

# In `report.json` -> type and name for the Hub. All three are of pairs: of the judge and each
# annotator of an item, so that an item with five annotators counts five times.
_METRICS = {
    "alpha": ("krippendorff_alpha", "Krippendorff's alpha, judge with each annotator"),
    "accuracy": ("accuracy", "Accuracy over pairs of judge and annotator"),
    "macro_f1": ("f1", "Macro F1 over pairs of judge and annotator"),
}
DATA = "data"
"""Kind of the repository with the annotated items, where somebody asks to publish them."""


def repository_names(user: str, name: str) -> dict[str, str]:
    """Kind of artefact -> its repository on the Hub."""
    return {kind: f"{user}/{name}{'-' + kind if kind else ''}" for kind in _KINDS}


def data_name(user: str, name: str) -> str:
    """The repository of a judge's annotated items."""
    return f"{user}/{name}-{DATA}"


def render_card(
    kind: str,
    user: str,
    recipe: Recipe,
    rubric: Rubric,
    facts: Mapping[str, Any],
    report: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    holds: Mapping[str, str],
) -> str:
    """The README.md of one of the four repositories.

    Args:
        kind: "" (merged), "lora", "bnb-4bit" or "GGUF".
        user: user or organisation on the Hub.
        recipe: of the run.
        rubric: of the judge.
        facts: `training.json` of the adapter; and `base_commit`, `adapter_beside`, whether the
            bitsandbytes file has it in a subfolder, and `published_data`, the repository of its
            annotated items, where there are any.
        report: `verify.json` of the run.
        evaluation: `report.json` of the run.
        holds: name of a quantization -> what its GGUF file holds.
    """
    names = repository_names(user, recipe.name)
    environment = SandboxedEnvironment(undefined=StrictUndefined, finalize=escape, autoescape=False)
    environment.filters |= {
        "interval": lambda *given: Markdown(interval(*given)),
        "number": lambda *given: Markdown(number(*given)),
        "value": lambda value: code(format_value(value)),
        "whose": whose,
        **{"markdown": Markdown, "lines": lines, "code": code},
    }
    source = (Path(__file__).parent / "card.md.jinja").read_text(encoding="utf-8")
    settings = public_settings(recipe.model_dump())
    base, repo = code(settings["base"]), _base_repo(recipe.base)
    asked = [dimension.name for dimension in rubric.as_written]
    body = environment.from_string(source).render(
        name=recipe.name,
        kind=kind,
        this=names[kind],
        repos=[(names[other], what) for other, (_, _, what) in _KINDS.items()],
        summary=f"Annotates {_list(rubric.fields)} for {_list(asked)}.",
        example=_example(rubric),
        questions=rubric.questions(),
        quantization=evaluation["systems"][0],
        rubric=rubric,
        recipe=recipe,
        card=recipe.card,
        facts=facts,
        several=facts.get("seeds"),
        report=report,
        evaluation=evaluation,
        holds=holds,
        main=evaluation["systems"][0],
        significant=significant(evaluation),
        bias=bias_sentences(evaluation),
        artefacts=list(next(iter(report["dimensions"].values()))["artefacts"]),
        figure_folder=FIGURES,
        base_link=Markdown(f"[{base}]({_HUB}/{quote(repo)})") if repo else base,
        recipe_yaml=block(
            yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).strip(), "yaml"
        ),
    )
    metadata = _metadata(kind, names, recipe, _dataset(recipe, facts), evaluation)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def render_data_card(recipe: Recipe, rubric: Rubric, counts: Mapping[str, int], judge: str) -> str:
    """The README.md of the annotated items of a judge, whose repository is `judge`."""
    data = DatasetCardData(
        license=recipe.card.data_license,
        language=recipe.card.language or None,
        task_categories=["text-classification"],
        tags=["slm-judge"],
        pretty_name=f"{recipe.name}: annotated items",
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"{name}.jsonl"} for name in counts],
            }
        ],
    )
    split = ", ".join(f"{count} {name}" for name, count in counts.items())
    columns = [f"| {escape(name)} | a text of the item |" for name in rubric.fields]
    columns += [
        f"| {escape(d.name)} | {d.type}: {escape(d.instructions)} |" for d in rubric.dimensions
    ]
    about = recipe.card.data_description or "What the judge was trained, chosen and measured on."
    return f"""---
{data.to_yaml()}
---

# {escape(recipe.name)}: annotated items

{about}

The split with which [{escape(judge)}]({_HUB}/{quote(judge)}) was made: {split} items, a row
an annotation. Annotators, and groups of items that stay in one split, have numbers, not names.

| column | |
| --- | --- |
| item_id | the item |
| annotator_id | the annotator, where the data named one |
| group | items that belong together |
{chr(10).join(columns)}
"""


def evaluation_results(
    kind: str, recipe: Recipe, facts: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> str | None:
    """`.eval_results/*.yaml`, which the Hub reads in place of the metadata's `model-index`.

    None where the held-out items are no dataset on the Hub.
    """
    if not (dataset := _dataset(recipe, facts)):
        return None
    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=f"{result.task_name}-{result.metric_type}",
            value=result.metric_value,
            notes=f"{result.metric_name}; {result.dataset_name}",
        )
        for result in _results(kind, recipe, dataset, evaluation)
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)


def _dataset(recipe: Recipe, facts: Mapping[str, Any]) -> str | None:
    """The dataset of the items on the Hub, if there is one."""
    if published := facts.get("published_data"):
        return str(published)
    return re.split("[@#]", recipe.data.train)[0] if _is_repo(recipe.data.train) else None


def _results(
    kind: str, recipe: Recipe, source: str, evaluation: Mapping[str, Any]
) -> list[EvalResult]:
    main = {"": "merged", "lora": "adapter", "bnb-4bit": "bnb-4bit"}.get(
        kind, evaluation["systems"][0]
    )
    return [
        EvalResult(
            task_type="text-classification",
            task_name=name,
            dataset_type=source,
            dataset_name=f"{source}, held-out items"
            + (" with several annotations" if of_system["apart"] else ""),
            dataset_config=name,  # which keeps the dimensions apart
            metric_type=kind_of_metric,
            metric_name=title,
            metric_value=round(found["estimate"], 4),
        )
        for name, dimension in evaluation["dimensions"].items()
        for metric, (kind_of_metric, title) in _METRICS.items()
        if dimension["systems"]  # no annotations, no figures
        and (found := (of_system := dimension["systems"][main])["compared"][metric])["estimate"]
        is not None
    ]


def _metadata(
    kind: str,
    names: Mapping[str, str],
    recipe: Recipe,
    dataset: str | None,
    evaluation: Mapping[str, Any],
) -> ModelCardData:
    relation, library, _ = _KINDS[kind]
    quantized = relation == "quantized"
    return ModelCardData(
        base_model=names[""] if quantized else _base_repo(recipe.base),
        base_model_relation=relation if quantized or _base_repo(recipe.base) else None,
        library_name=library,
        pipeline_tag="text-classification",
        tags=[*TAGS, *(["lora"] if relation == "adapter" else [])],
        license=recipe.card.license,
        language=recipe.card.language or None,
        datasets=[dataset] if dataset else None,
        model_name=names[kind].partition("/")[2],
        eval_results=_results(kind, recipe, dataset or recipe.name, evaluation),
    )


def _base_repo(base: str) -> str | None:
    """The base's name on the Hub, if it has one."""
    return REPOSITORY if base == "smollm2" else base if _is_repo(base) else None


def _is_repo(location: str) -> bool:
    """A base or data that is a folder or file, and the offline base, have no name on the Hub."""
    return location.count("/") == 1 and not Path(location).exists()


def _example(rubric: Rubric) -> str:
    if len(rubric.fields) == 1:
        return '"The text to judge."'
    return "{" + ", ".join(f'"{field}": "The {field}."' for field in rubric.fields) + "}"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"

"""The files that make a model folder a judge, next to the weights and the tokenizer.

`rubric.json`, `decision.json` and `decision_template.jinja` (both read by transformers), and
`systemone_template.jinja` (written into GGUF files by export).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from slm_judge.errors import ModelError
from slm_judge.files import write_text
from slm_judge.prompt.labels import check_label_count, single_token_labels
from slm_judge.prompt.layout import build_layout
from slm_judge.prompt.templates import compile_template, decision_template, systemone_template
from slm_judge.rubric import RUBRIC_FILE, Dimension, Preference, Rubric, explain
from slm_judge.version import __version__

from .calibration import Calibration, Temperature, as_json, read_calibrations

DECISION = "decision.json"
ADAPTER_FOLDER = "adapter"
QUESTIONS = "questions.json"  # the rubric as `pipeline("decision")` takes it, for people to use
DECISION_TEMPLATE, SYSTEMONE_TEMPLATE = "decision_template.jinja", "systemone_template.jinja"
FILES = (RUBRIC_FILE, DECISION, DECISION_TEMPLATE, SYSTEMONE_TEMPLATE)
QuestionType = Literal["score", "choice", "noul"]
QUESTION_TYPES: tuple[QuestionType, ...] = get_args(QuestionType)
_LARGEST_FILE = 2**24  # bytes of a file of the contract

Temperatures = dict[QuestionType, Temperature]


class _Decision(BaseModel):
    """What is read of `decision.json`; transformers reads more."""

    labels: dict[QuestionType, list[Annotated[str, Field(pattern="^[A-Z]{1,2}$")]]]
    temperature: Temperatures
    slm_judge_calibration: Any = Field(default_factory=dict)
    adapter: Literal["adapter"] | None = None

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        labels = self.labels.get("choice", [])
        if not labels or len(set(labels)) < len(labels):
            raise ValueError("labels.choice: needs distinct labels, the same for every question")
        if any(other != labels[: len(other)] for other in self.labels.values()):
            raise ValueError("labels: those of score and noul are not the first of choice")
        return self


@dataclass(frozen=True)
class Contract:
    """What a judge asks, how it asks, and how its logits become probabilities."""

    rubric: Rubric
    decision_template: str
    systemone_template: str
    labels: tuple[str, ...]
    """Label codes, in option order; as many as the longest dimension can use."""
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """Per question type, for stock engines; 1 where absent. Logits are divided by it."""
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """Per dimension; where absent, the temperature of its type."""
    adapter: str | None = None
    """The subfolder with the adapter that belongs on the folder's weights, if there is one."""

    @classmethod
    def build(cls, rubric: Rubric, tokenizer: Any) -> "Contract":
        """Make the contract of a rubric for a base, whose chat template it takes over.

        Raises:
            RubricError: a dimension has more options than there are labels.
            ModelError: the base's tokenizer or chat template cannot be used.
        """
        labels = tuple(
            single_token_labels(lambda s: tokenizer(s, add_special_tokens=False)["input_ids"])
        )
        check_label_count(rubric, labels)
        layout = build_layout(tokenizer, rubric)
        return cls(
            rubric, decision_template(rubric, layout), systemone_template(rubric, layout), labels
        )

    def temperature(self, question_type: str) -> float:
        """The temperature of a question type, as stock engines apply it."""
        return float(self.temperatures.get(question_type, 1.0))

    def calibration(self, dimension: Dimension) -> Calibration:
        """How the logits of a dimension become probabilities."""
        by_type = Calibration(temperature=self.temperature(dimension.asked_as))
        return self.calibrations.get(dimension.name, by_type)

    def calibrated(
        self, temperatures: Mapping[str, float], calibrations: Mapping[str, Calibration]
    ) -> "Contract":
        """The same contract with temperatures per type, and calibrations per dimension."""
        return replace(self, temperatures=dict(temperatures), calibrations=dict(calibrations))

    def save(self, folder: Path) -> None:
        """Write the files of the contract into `folder`."""
        decision = {
            "labels": {
                "score": list(self.labels),
                "choice": list(self.labels),
                "noul": list(self.labels[:2]),
            },
            "temperature": {kind: self.temperature(kind) for kind in QUESTION_TYPES},
            "slm_judge_calibration": json.loads(as_json(self.calibrations)),
            "noul_options": ["false", "true"],
            # The template escapes control tokens itself, the same way for every reader.
            "sanitize_control_tokens": False,
            # `transformers serve --decision-config` reads this file alone, and without a template
            # would ask in other words than those of training, silently.
            "chat_template": self.decision_template,
            "slm_judge_version": __version__,
        }
        if self.adapter:  # `pipeline("decision")` adds it
            decision["adapter"] = self.adapter
        write_text(folder / RUBRIC_FILE, self.rubric.model_dump_json(indent=2) + "\n")
        questions = json.dumps(self.rubric.questions(), indent=2, ensure_ascii=False)
        write_text(folder / QUESTIONS, questions + "\n")
        write_text(folder / DECISION, json.dumps(decision, indent=2) + "\n")
        write_text(folder / DECISION_TEMPLATE, self.decision_template)
        write_text(folder / SYSTEMONE_TEMPLATE, self.systemone_template)

    @classmethod
    def load(cls, folder: Path) -> "Contract":
        """Read what `save` wrote.

        Raises:
            ModelError: a file is missing or cannot be read.
        """
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder} is not a judge: it has no {', '.join(missing)}. A judge is made by "
                "`slm-judge train` and `slm-judge export`."
            )
        texts = {name: _read(folder / name) for name in FILES}
        try:
            decision = _Decision.model_validate_json(texts[DECISION], strict=True)
        except ValidationError as error:
            raise ModelError(f"{folder / DECISION} cannot be read:\n{explain(error)}") from error
        rubric = Rubric.from_json(texts[RUBRIC_FILE], str(folder / RUBRIC_FILE))
        check_label_count(rubric, decision.labels["choice"])
        templates = texts[DECISION_TEMPLATE], texts[SYSTEMONE_TEMPLATE]
        compile_template(templates[0], str(folder / DECISION_TEMPLATE))
        compile_template(templates[1], str(folder / SYSTEMONE_TEMPLATE))
        labels, origin = tuple(decision.labels["choice"]), f"{folder / DECISION}: calibration"
        own = read_calibrations(json.dumps(decision.slm_judge_calibration), rubric, origin)
        temperatures: dict[str, float] = dict(decision.temperature.items())
        return cls(rubric, *templates, labels, temperatures, own, decision.adapter)


def adapter_beside(folder: Path) -> bool:
    """Whether the weights in a folder are a judge's base alone, whose adapter is in a subfolder."""
    try:
        decision = json.loads(_read(folder / DECISION)) if (folder / DECISION).is_file() else None
    except ValueError:  # of a judge, `Contract.load` says so
        return False
    return isinstance(decision, dict) and bool(decision.get("adapter"))


def calibration_notes(contract: Contract) -> list[str]:
    """What people should know about the probabilities of a judge."""
    dimensions = contract.rubric.dimensions
    found = [(d, contract.calibration(d)) for d in dimensions]
    notes = [
        f"{d.name}: the temperature that calibrates it is at its bound, {one.temperature:g}, so "
        f"its probabilities are still too {'low' if one.bound == 'least' else 'high'} for its "
        "labels. More training, or more items, would mend that."
        for d, one in found
        if one.bound
    ]
    if shifted := [d.name for d, one in found if one.shift]:
        notes.append(
            f"{', '.join(shifted)}: labels are chosen as if options were balanced "
            "(training.class_balance), while probabilities and confidence are of their real "
            "frequencies, so that a label need not be the most probable option."
        )
    chosen = [d.name for d, one in found if one.threshold not in (None, 0.5)]
    if chosen:
        notes.append(
            f"{', '.join(chosen)}: chosen where their probability is above a threshold that was "
            "set on the validation items; transformers' own pipeline and llama-server, which know "
            "one temperature a question type, choose above 0.5."
        )
    if pairs := [d.name for d in dimensions if isinstance(d, Preference)]:
        notes.append(
            f"{', '.join(pairs)}: slm-judge takes the mean of both orders of the two texts; "
            "transformers' own pipeline and llama-server read one order, and may give other labels."
        )
    chosen += pairs
    own = [d.name for d, o in found if o.shift or o.temperature != contract.temperature(d.asked_as)]
    if own := [name for name in own if name not in chosen]:
        notes.append(
            f"{', '.join(own)}: transformers' own pipeline and llama-server, which know one "
            "temperature a question type, give the same labels with other probabilities."
        )
    return notes


def read_temperatures(texts: Mapping[QuestionType, str], origin: str) -> dict[str, float]:
    """Temperatures per question type, from texts.

    Raises:
        ModelError: one is no number between 0.01 and 100; `origin` is named.
    """
    try:
        return dict(TypeAdapter(Temperatures).validate_python(texts).items())
    except ValidationError as error:
        raise ModelError(f"{origin}: the temperatures cannot be used:\n{explain(error)}") from error


def _read(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise ModelError(f"{path} has {size} bytes, more than any rubric or template needs.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error

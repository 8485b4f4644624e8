"""The files that make a model folder a judge, next to the weights and the tokenizer.

`rubric.json`, `decision.json` and `decision_template.jinja` (both read by transformers), and
`systemone_template.jinja` (written into GGUF files by export).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slm_judge.errors import ModelError
from slm_judge.files import write_text
from slm_judge.prompt.labels import check_label_count, single_token_labels
from slm_judge.prompt.layout import build_layout
from slm_judge.prompt.templates import decision_template, systemone_template
from slm_judge.rubric import RUBRIC_FILE, Rubric
from slm_judge.version import __version__

DECISION = "decision.json"
QUESTIONS = "questions.json"  # the rubric as `pipeline("decision")` takes it, for people to use
DECISION_TEMPLATE, SYSTEMONE_TEMPLATE = "decision_template.jinja", "systemone_template.jinja"
FILES = (RUBRIC_FILE, DECISION, DECISION_TEMPLATE, SYSTEMONE_TEMPLATE)
QUESTION_TYPES = ("score", "choice", "noul")


@dataclass(frozen=True)
class Contract:
    """What a judge asks, how it asks, and how its logits become probabilities."""

    rubric: Rubric
    decision_template: str
    systemone_template: str
    labels: tuple[str, ...]
    """Label codes, in option order; as many as the longest dimension can use."""
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """Per question type; 1 where absent. Logits are divided by it before the softmax."""

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
        """The temperature of a question type."""
        return float(self.temperatures.get(question_type, 1.0))

    def with_temperatures(self, temperatures: Mapping[str, float]) -> "Contract":
        """The same contract, calibrated."""
        return replace(self, temperatures=dict(temperatures))

    def save(self, folder: Path) -> None:
        """Write the files of the contract into `folder`."""
        decision = {
            "labels": {
                "score": list(self.labels),
                "choice": list(self.labels),
                "noul": list(self.labels[:2]),
            },
            "temperature": {kind: self.temperature(kind) for kind in QUESTION_TYPES},
            "noul_options": ["false", "true"],
            # The template escapes control tokens itself, the same way for every reader.
            "sanitize_control_tokens": False,
            "slm_judge_version": __version__,
        }
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
        try:
            decision = json.loads((folder / DECISION).read_text(encoding="utf-8"))
            labels, temperatures = decision["labels"]["choice"], decision["temperature"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ModelError(f"{folder / DECISION} cannot be read: {error!r}") from error
        return cls(
            Rubric.from_json((folder / RUBRIC_FILE).read_text(encoding="utf-8")),
            (folder / DECISION_TEMPLATE).read_text(encoding="utf-8"),
            (folder / SYSTEMONE_TEMPLATE).read_text(encoding="utf-8"),
            tuple(labels),
            temperatures,
        )

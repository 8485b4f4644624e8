"""How logits become probabilities, dimension by dimension.

The files of transformers (`decision.json`) and llama.cpp (GGUF keys) hold a temperature per
question type, which is all that stock engines apply. A `Calibration` per dimension stands beside
it, in a key that they do not read: `pipeline("decision")` and `llama-server` give the same labels
as `Judge`, and probabilities of the one temperature.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from slm_judge.errors import ModelError
from slm_judge.rubric import Rubric, explain

Temperature = Annotated[float, Field(ge=0.01, le=100)]


class Calibration(BaseModel):
    """From the logits z of V options to probabilities: softmax(z / temperature - shift)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    temperature: Temperature = 1.0
    shift: tuple[Annotated[float, Field(ge=-50, le=50)], ...] = ()
    """V logarithms of the weights that options had in training (`training.class_balance`), which
    made rare ones as likely as if they were frequent; empty where all weighed the same. Labels are
    the largest logits, before it."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, exclude_if=lambda given: given is None
    )
    """Of a yes-or-no question of a set: the probability of yes above which that is the label."""
    bound: Literal["least", "most"] | None = Field(
        default=None, exclude_if=lambda given: given is None
    )
    """Which of the temperatures that are allowed this is, so that a better one may lie beyond."""

    def leanings(self, logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Logits (... x V) whose largest one is the label."""
        found = np.array(logits, dtype=np.float64)
        if self.threshold is not None:
            no, yes = self.shift or (0.0, 0.0)
            odds = np.log(self.threshold / (1 - self.threshold))
            found[..., 1] -= self.temperature * (odds + yes - no)
        return found


_CALIBRATIONS = TypeAdapter(dict[str, Calibration])


def as_json(calibrations: Mapping[str, Calibration]) -> str:
    """What `read_calibrations` reads."""
    return json.dumps({name: one.model_dump() for name, one in calibrations.items()})


def read_calibrations(text: str, rubric: Rubric, origin: str) -> dict[str, Calibration]:
    """Calibrations by dimension.

    Raises:
        ModelError: they are not those of the rubric's dimensions; `origin` is named.
    """
    try:
        found = _CALIBRATIONS.validate_json(text, strict=True)
    except ValidationError as error:
        raise ModelError(f"{origin} cannot be used:\n{explain(error)}") from error
    sizes = {dimension.name: len(dimension.options) for dimension in rubric.dimensions}
    for name, one in found.items():
        size = sizes.get(name)
        if size is None or len(one.shift) not in (0, size) or (one.threshold and size != 2):
            wanted = f"{size} shifts, a threshold of 2 options" if size else ", ".join(sizes)
            raise ModelError(f"{origin}: {name} does not fit the rubric; expected {wanted}.")
    return found

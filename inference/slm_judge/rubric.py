"""The rubric: what is asked about an item, and the values with which people answered.

A rubric is the contract between the annotators, the prompt, the model and whoever reads the
labels. Its dimensions are System One questions: `score`, `choice` and `noul` (true or false).
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from .errors import RubricError

Value = bool | int | float | str
NonEmpty = Annotated[str, Field(min_length=1)]
LevelOfMeasurement = Literal["nominal", "ordinal", "interval", "ratio"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TRUE, _FALSE = {"true", "1", "1.0", "yes", "t", "y"}, {"false", "0", "0.0", "no", "f", "n"}
# The server of llama.cpp refuses score questions outside these bounds.
LLAMA_SERVER_MAX_LEVELS = 10
RUBRIC_FILE = "rubric.json"
"""Name of the rubric in the folder of a judge."""


class Option(BaseModel):
    """One answer: the value that annotators used, and what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Value
    """As it stands in the annotators' data, e.g. -2 or "joy"."""
    description: str = ""
    """What the annotators were told about it."""


def _options(raw: Any) -> Any:
    """Accept a mapping value -> description, a list of values, or a list of full options."""
    if isinstance(raw, dict):
        return [{"value": value, "description": text or ""} for value, text in raw.items()]
    if isinstance(raw, list):
        return [
            option if isinstance(option, dict | Option) else {"value": option} for option in raw
        ]
    return raw


Options = Annotated[list[Option], BeforeValidator(_options)]


class _Dimension(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Column in the data and name of the question."""
    instructions: str = Field(min_length=1)
    """The question, as the annotators read it."""
    options: Options
    """The answers, in display order; those of a score from the lowest level to the highest."""
    level_of_measurement: LevelOfMeasurement
    """For Krippendorff's alpha."""
    paraphrases: list[NonEmpty] = []
    """Other wordings of the instructions; training can use them, annotation never does."""

    @field_validator("name")
    @classmethod
    def _valid_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} must be letters, digits and underscores, letter first")
        return name

    @model_validator(mode="after")
    def _distinct_options(self) -> Self:
        keys = [self.key(index) for index in range(len(self.options))]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ValueError(f"{self.name}: options listed twice: {', '.join(repeated)}")
        if len(self.options) < 2:
            raise ValueError(f"{self.name}: needs at least two options, got {len(self.options)}")
        return self

    @property
    def values(self) -> list[Value]:
        """The annotators' values, in option order."""
        return [option.value for option in self.options]

    def key(self, index: int) -> str:
        """The text that names option `index` in the prompt and in files."""
        return format_value(self.options[index].value)

    def index(self, raw: object) -> int | None:
        """The option that a raw label from a file means, or None where it means none."""
        text = format_value(raw) if isinstance(raw, bool | int | float) else str(raw).strip()
        for index in range(len(self.options)):
            if self.key(index) == text:
                return index
        return None


class Score(_Dimension):
    """Ordered levels, lowest first."""

    type: Literal["score"] = "score"
    level_of_measurement: LevelOfMeasurement = "ordinal"

    @field_validator("options")
    @classmethod
    def _ordered(cls, options: list[Option]) -> list[Option]:
        numbers = [option.value for option in options]
        if any(isinstance(value, str | bool) for value in numbers):
            raise ValueError(f"the levels of a score are numbers, got {numbers}")
        if numbers != sorted(numbers):  # type: ignore[type-var]
            raise ValueError(f"the levels of a score go from lowest to highest, got {numbers}")
        return options

    def index(self, raw: object) -> int | None:
        """See `_Dimension.index`; "2.0" means level 2."""
        try:
            number = float(str(raw))
        except ValueError:
            return None
        return next((i for i, value in enumerate(self.values) if value == number), None)

    def question(self) -> dict[str, Any]:
        """The System One question."""
        levels = [
            f"{self.key(i)}: {option.description}" if option.description else self.key(i)
            for i, option in enumerate(self.options)
        ]
        return {"type": "score", "instructions": self.instructions, "criteria": levels}


class Choice(_Dimension):
    """Named options."""

    type: Literal["choice"] = "choice"
    level_of_measurement: LevelOfMeasurement = "nominal"

    @field_validator("options")
    @classmethod
    def _named(cls, options: list[Option]) -> list[Option]:
        for option in options:
            if isinstance(option.value, bool):
                raise ValueError(
                    f"option {option.value} was read as true or false; quote it in the YAML"
                )
            if not format_value(option.value).strip():
                raise ValueError("an option has an empty name")
        return options

    def question(self) -> dict[str, Any]:
        """The System One question."""
        criteria = {
            self.key(i): option.description or None for i, option in enumerate(self.options)
        }
        return {"type": "choice", "instructions": self.instructions, "criteria": criteria}


class Noul(_Dimension):
    """True or false. Option 0 is false and option 1 is true, whatever the order in the file."""

    type: Literal["noul"] = "noul"
    options: Options = [Option(value=False), Option(value=True)]
    level_of_measurement: LevelOfMeasurement = "nominal"

    @field_validator("options")
    @classmethod
    def _false_then_true(cls, options: list[Option]) -> list[Option]:
        found = {format_value(option.value): option.description for option in options}
        if sorted(found) != ["false", "true"]:
            raise ValueError(f"the options of a noul are true and false, got {sorted(found)}")
        return [Option(value=value, description=found[format_value(value)])
                for value in (False, True)]  # fmt: skip

    def index(self, raw: object) -> int | None:
        """See `_Dimension.index`; also takes 0/1, yes/no, t/f, y/n."""
        text = str(raw).strip().lower()
        return 1 if text in _TRUE else 0 if text in _FALSE else None

    def question(self) -> dict[str, Any]:
        """The System One question."""
        criteria = {
            self.key(i): option.description or None for i, option in enumerate(self.options)
        }
        return {"type": "noul", "instructions": self.instructions, "criteria": criteria}


Dimension = Annotated[Score | Choice | Noul, Field(discriminator="type")]


class Rubric(BaseModel):
    """A validated rubric."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Short name, used in reports and for the files of the judge."""
    instructions: str = Field(min_length=1)
    """What the annotators were told about the task as a whole."""
    fields: list[str] = Field(min_length=1)
    """Input columns in display order."""
    dimensions: list[Dimension] = Field(min_length=1)
    """The questions, in the order in which they are answered."""
    paraphrases: list[NonEmpty] = []
    """Other wordings of the instructions; training can use them, annotation never does."""

    @field_validator("name")
    @classmethod
    def _file_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"{name!r} must be letters, digits, '.', '_' and '-'")
        return name

    @field_validator("fields")
    @classmethod
    def _valid_fields(cls, fields: list[str]) -> list[str]:
        for field in fields:
            if not _NAME.fullmatch(field):
                raise ValueError(
                    f"field {field!r} must be letters, digits and underscores, letter first; "
                    "map another column name to it with `columns` in the recipe"
                )
        return fields

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [*self.fields, *(dimension.name for dimension in self.dimensions)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"fields and dimensions need distinct names, repeated: {repeated}")
        return self

    def questions(self) -> dict[str, dict[str, Any]]:
        """The dimensions as System One questions, in order."""
        return {dimension.name: dimension.question() for dimension in self.dimensions}

    def dimension(self, name: str) -> Dimension:
        """The dimension called `name`.

        Raises:
            RubricError: there is none.
        """
        for dimension in self.dimensions:
            if dimension.name == name:
                return dimension
        names = ", ".join(dimension.name for dimension in self.dimensions)
        raise RubricError(f"The rubric {self.name!r} has no dimension {name!r}; it has {names}.")

    def warnings(self) -> list[str]:
        """What is valid but limits where the judge can run."""
        return [
            f"{dimension.name}: llama-server answers scores of at most {LLAMA_SERVER_MAX_LEVELS} "
            f"levels, this one has {len(dimension.options)} (slm-judge itself is not limited)"
            for dimension in self.dimensions
            if dimension.type == "score" and len(dimension.options) > LLAMA_SERVER_MAX_LEVELS
        ]

    def to_json(self) -> str:
        """JSON that `from_json` reads back."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> "Rubric":
        """Read what `to_json` wrote.

        Raises:
            RubricError: `text` is not a valid rubric.
        """
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise RubricError(f"The rubric is not valid JSON: {error}") from error
        return cls.parse(raw, "the rubric")

    @classmethod
    def parse(cls, raw: object, origin: str) -> "Rubric":
        """Validate a rubric read from `origin` (named in errors).

        Raises:
            RubricError: it is not valid; the message lists every problem.
        """
        if not isinstance(raw, dict):
            raise RubricError(
                f"{origin}: expected keys name, instructions, fields, dimensions; "
                f"got {type(raw).__name__}."
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise RubricError(f"{origin} is not a valid rubric:\n{explain(error)}") from error

    @classmethod
    def from_file(cls, path: str | Path) -> "Rubric":
        """Read a rubric from a YAML (or JSON) file.

        Raises:
            RubricError: the file is missing, is not YAML, or is not a valid rubric.
        """
        return cls.parse(read_yaml(path, RubricError), str(path))


def read_yaml(path: str | Path, error_type: type[Exception]) -> object:
    """Read a YAML file, raising `error_type` with a plain message where that fails."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise error_type(f"Cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise error_type(f"{path} is not valid YAML: {error}") from error


def explain(error: ValidationError) -> str:
    """One line a problem: where it is and what is wrong."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"  {where}: {message}")
    return "\n".join(lines)


def format_value(value: object) -> str:
    """The one text form of a value: true, -2, 2.5, joy."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)

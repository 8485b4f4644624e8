"""The rubric: what is asked about an item, and the values with which people answered.

A rubric is the contract between the annotators, the prompt, the model and whoever reads the
labels. Its dimensions are System One questions: `score`, `choice` and `noul` (true or false); a
`preference` goes to engines as a choice, a `multi` as a noul an option.
"""

import datetime
import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from functools import cached_property
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .errors import RubricError
from .text import nfc, normalise


def _normalised(value: object, info: ValidationInfo) -> object:
    """Each text of a rubric; where more than NFC changed it, the context, if any, takes a note."""
    if not isinstance(value, str):
        return value
    text = normalise(value)
    if info.context is not None and text != nfc(value):
        info.context.append(f"{value!r} is read as {text!r}: engines do not read all of it alike")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("there is no text in it")
    return text


Text = Annotated[str, BeforeValidator(_normalised)]
Value = Annotated[bool | int | float | str, BeforeValidator(_normalised)]
NonEmpty = Annotated[Text, AfterValidator(_not_blank)]
Values = Annotated[
    list[Value], BeforeValidator(lambda given: given if isinstance(given, list) else [given])
]
LevelOfMeasurement = Literal["nominal", "ordinal", "interval", "ratio"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?")
_COMMA = re.compile(r"[+-]?\d+,\d+")
_BEHIND = (" ", ": ", " - ", " \u2013 ", " = ", ". ", ") ")  # what parts a key from its meaning
LARGEST = 2**53  # of the levels of a score: up to here floats count whole numbers exactly
# The server of llama.cpp refuses score questions outside these bounds.
LLAMA_SERVER_MAX_LEVELS = 10
_PROBLEMS = 20  # that are said at once
APPLICABLE = "_applicable"
"""Behind the name of a dimension, whether it applies, in reports."""
FLIPPED = "_flipped"
"""Behind the name of a preference, whether its two readings chose different labels, in tables."""
RUBRIC_FILE = "rubric.json"
"""Name of the rubric in the folder of a judge."""


class Option(BaseModel):
    """One answer: the value that annotators used, and what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Value
    """As it stands in the annotators' data, e.g. -2 or "joy"."""
    description: Text = ""
    """What the annotators were told about it."""
    not_applicable: bool = Field(default=False, exclude_if=lambda given: not given)
    """It is no level and no category of the scale: that the question does not apply, or that
    nobody can tell."""


def _named(options: list[Option]) -> list[Option]:
    """Refuse options that have no name as a text."""
    for option in options:
        if isinstance(option.value, bool):
            raise ValueError(
                f"option {option.value} was read as true or false; quote it in the YAML"
            )
        if not format_value(option.value).strip():
            raise ValueError("an option has an empty name")
    return options


def _options(raw: Any) -> Any:
    """Accept a mapping value -> description, a list of values, or a list of full options."""
    if isinstance(raw, bool | int | float | str):
        raw = [raw]
    if isinstance(raw, dict):
        return [
            {"value": value, "description": "" if text is None else text}
            for value, text in raw.items()
        ]
    if isinstance(raw, list):
        return [
            option if isinstance(option, dict | Option) else {"value": option} for option in raw
        ]
    return raw


Options = Annotated[list[Option], BeforeValidator(_options)]
NamedOptions = Annotated[Options, AfterValidator(_named)]


class _Dimension(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Column in the data and name of the question."""
    instructions: NonEmpty
    """The question, as the annotators read it."""
    options: Options
    """The answers, in display order; those of a score from the lowest level to the highest. Those
    that are `not_applicable`, which a key of the dimension of that name lists too, are the last."""
    level_of_measurement: LevelOfMeasurement
    """For Krippendorff's alpha."""
    paraphrases: list[NonEmpty] = []
    """Other wordings of the instructions; training can use them, annotation never does."""
    ask_if: dict[str, Values] = Field(default={}, exclude_if=lambda given: not given)
    """Earlier dimension -> answers to it. Only items with one of them, for each dimension that is
    named, are asked about."""
    synonyms: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Key of an option -> other words that mean it in data."""
    usual: ClassVar[tuple[Any, ...]] = ()
    """The options where none are given."""

    @model_validator(mode="before")
    @classmethod
    def _one_list_of_options(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "not_applicable" not in raw:
            return raw
        raw = dict(raw)
        beside = _options(raw.pop("not_applicable"))
        given = _options(raw.get("options", list(cls.usual)))
        if isinstance(beside, list) and isinstance(given, list):
            beside = [o | {"not_applicable": True} if isinstance(o, dict) else o for o in beside]
            raw["options"] = [*given, *beside]
        return raw

    @field_validator("name")
    @classmethod
    def _valid_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} must be letters, digits and underscores, letter first")
        return name

    @model_validator(mode="after")
    def _valid_options(self) -> Self:
        self.options.sort(key=lambda option: option.not_applicable)
        keys = [self.key(index) for index in range(len(self.options))]
        repeated = sorted(key for key, times in Counter(keys).items() if times > 1)
        if repeated:
            raise ValueError(f"{self.name}: options listed twice: {', '.join(repeated)}")
        scale = [option.value for option in self.options if not option.not_applicable]
        if len(scale) < 2:
            beside = " that apply" if len(scale) < len(keys) else ""
            raise ValueError(f"{self.name}: needs at least two options{beside}, got {len(scale)}")
        words = [value for value, key in zip(scale, keys, strict=False)
                 if isinstance(value, bool) or not _NUMBER.fullmatch(key)
                 or not math.isfinite(float(key))]  # fmt: skip
        if self.level_of_measurement == "ratio" and any(key.startswith("-") for key in keys):
            raise ValueError(
                f"{self.name}: ratios are not below 0; make the level_of_measurement interval"
            )
        if words and self.level_of_measurement in ("interval", "ratio"):
            raise ValueError(
                f"{self.name}: at the {self.level_of_measurement} level the options are numbers, "
                f"got {words}; make the level_of_measurement nominal or ordinal"
            )
        return self

    @property
    def values(self) -> list[Value]:
        """The annotators' values, in option order."""
        return [option.value for option in self.options]

    @property
    def n_levels(self) -> int:
        """How many options are levels or categories; those after them say that none applies."""
        return sum(not option.not_applicable for option in self.options)

    @property
    def scale(self) -> Self:
        """The same dimension without the options that say that none applies."""
        return self.model_copy(update={"options": self.options[: self.n_levels]})

    @property
    def asked_as(self) -> Literal["score", "choice", "noul"]:
        """The type of the question: one with an option off the scale is a choice, of which no
        engine computes an expected level.
        """
        return self.type if self.n_levels == len(self.options) else "choice"  # type: ignore[attr-defined,no-any-return]

    def question(self) -> dict[str, Any]:
        """The System One question."""
        told = [(self.key(i), option.description) for i, option in enumerate(self.options)]
        criteria: Any = {key: text or None for key, text in told}
        if self.asked_as == "score":
            criteria = [f"{key}: {text}" if text else key for key, text in told]
        return {"type": self.asked_as, "instructions": self.instructions, "criteria": criteria}

    def key(self, index: int) -> str:
        """The text that names option `index` in the prompt and in files."""
        return format_value(self.options[index].value)

    def read(self, raw: object) -> tuple[int, bool] | None:
        """The one reading of a label from outside: what it plainly means, if anything.

        The exact key counts first; then letter case, the spaces around and between words, and the
        way in which a number or a letter with a mark is written make no difference. Where options
        differ in nothing else, only the exact key counts. What the annotators were told about an
        option means it too, alone or behind its key, as survey tools write it.

        Returns:
            The option, and whether the label is exactly its key; None where it means no option.
        """
        text = _plain_text(raw)
        if text is None:
            return None
        exact, plain = self._lookups
        if text in exact:
            return exact[text], True
        forms = plain_forms(text)
        option = next((plain[form] for form in forms if form in plain), self._between(forms))
        return None if option is None else (option, False)

    @property
    def span(self) -> float | None:
        """Of a slider, how far its range goes; None of any other question."""
        return None

    def _between(self, forms: list[str | float]) -> int | None:
        """The option of a number that is none of the keys; only a slider has any."""
        return None

    def read_as(self, raw: object, option: int) -> str:
        """How a label that is not exactly the key of its option was read, for people."""
        return f"{raw!r} as {self.key(option)}"

    def why_not(self, raw: object) -> str:
        """Why a label means no option, where there is more to say than that it is none; or ""."""
        forms = plain_forms(_plain_text(raw) or "")
        same = [key for key in self._lookups[0] if forms[0] in plain_forms(key)]
        if len(same) > 1:
            return f"it may be {' or '.join(same)}, which differ in nothing else"
        return "a decimal comma? Write a point" if _COMMA.fullmatch(str(forms[0])) else ""

    def index(self, raw: object) -> int | None:
        """The option of `read`."""
        found = self.read(raw)
        return None if found is None else found[0]

    @cached_property
    def _lookups(self) -> tuple[dict[str, int], dict[str | float, int | None]]:
        """Exact key -> option, and plain form -> option, or None where several have the form."""
        exact = {self.key(index): index for index in range(len(self.options))}
        words = {key: (key, *self._also(index)) for key, index in exact.items()}
        plain = {plain_forms(key)[0]: key for key in exact}
        for pair in (("false", "true"), ("no", "yes")):  # of a choice, the same words as of a noul
            for word, means in (
                zip(pair, Noul.synonyms, strict=True) if plain.keys() == set(pair) else ()
            ):
                words[plain[word]] += (means, *Noul.synonyms[means])
        told = [(key, self.options[index].description) for key, index in exact.items()]
        behind = {key: (text, f"{key} ({text})", *(f"{key}{mark}{text}" for mark in _BEHIND))
                  for key, text in told if text}  # fmt: skip
        return exact, _owned(behind, exact) | _owned(words, exact)

    def _also(self, index: int) -> tuple[str, ...]:
        """Other words that mean option `index` in data."""
        return self.synonyms.get(self.key(index), ())

    def reversed(self) -> Self:
        """The same dimension with its options from the last to the first, whatever its type."""
        return self.model_copy(update={"options": self.options[::-1]})

    def __copy__(self) -> Self:
        """Without the look-ups: a copy may get other options."""
        copied = super().__copy__()
        copied.__dict__.pop("_lookups", None)
        return copied


class Score(_Dimension):
    """Ordered levels, lowest first, whatever the order in the file."""

    type: Literal["score"] = "score"
    level_of_measurement: LevelOfMeasurement = "ordinal"
    range: tuple[FiniteFloat, FiniteFloat] | None = Field(
        default=None, exclude_if=lambda given: given is None
    )
    """Of a slider, e.g. [0, 100]: its numbers are read as the nearest level, of two the higher."""
    _reordered: bool = PrivateAttr(default=False)

    @field_validator("options")
    @classmethod
    def _numbers(cls, options: list[Option]) -> list[Option]:
        for value in (option.value for option in options if not option.not_applicable):
            if isinstance(value, str | bool) or not abs(value) <= LARGEST:  # NaN is not
                raise ValueError(f"the levels of a score are numbers up to 2**53, got {value!r}")
        return options

    @model_validator(mode="after")
    def _lowest_first(self) -> Self:
        given = self.values
        levels = sorted(self.options[: self.n_levels], key=lambda option: float(option.value))
        self.options[: self.n_levels] = levels
        self._reordered = self._reordered or given != self.values
        return self

    @model_validator(mode="after")
    def _within_range(self) -> Self:
        if self.range and len(self._levels) < 2:
            raise ValueError(f"{self.name}: needs at least two levels in its range {self.range}")
        return self

    @property
    def span(self) -> float | None:
        """Of a slider, how far its range goes."""
        return self.range[1] - self.range[0] if self.range else None

    @property
    def _levels(self) -> dict[int, float]:
        """The levels in the range, by option."""
        low, high = self.range or (-LARGEST, LARGEST)
        return {k: float(value) for k, value in enumerate(self.values[: self.n_levels])
                if not isinstance(value, str) and low <= value <= high}  # fmt: skip

    def _between(self, forms: list[str | float]) -> int | None:
        number, levels = forms[-1], self._levels
        if (
            isinstance(number, str)
            or not self.range
            or not self.range[0] <= number <= self.range[1]
        ):
            return None
        return min(levels, key=lambda k: (abs(levels[k] - number), -k))

    def read_as(self, raw: object, option: int) -> str:
        """How a label was read; the numbers of a range together."""
        number = plain_forms(_plain_text(raw) or "")[-1]
        if isinstance(number, str) or number == self._levels.get(option) or not self.range:
            return super().read_as(raw, option)
        return self.rule

    @property
    def rule(self) -> str:
        """How a slider reads its numbers, for people."""
        ends = " to ".join(map(format_value, self.range or ()))
        return f"numbers from {ends} as the nearest level, of two the higher"

    def why_not(self, raw: object) -> str:
        """Why a label means no level."""
        number, levels = plain_forms(_plain_text(raw) or "")[-1], self._levels.values()
        if self.range or isinstance(number, str) or not min(levels) < number < max(levels):
            return super().why_not(raw)
        ends = f"[{format_value(min(levels))}, {format_value(max(levels))}]"
        return f"with `range: {ends}` in the rubric it would be read as the nearest level"

    @property
    def reordered(self) -> bool:
        """Whether the levels had to be put in order."""
        return self._reordered


class Choice(_Dimension):
    """Named options."""

    type: Literal["choice"] = "choice"
    options: NamedOptions
    level_of_measurement: LevelOfMeasurement = "nominal"


class Preference(_Dimension):
    """Which of two texts: the first option means the first field of `between`, the second the
    second, the third, if there is one, neither.

    Engines are asked a choice. Ours are asked it twice, the texts exchanged the second time, and
    the probabilities are averaged: `judge.answer`.
    """

    type: Literal["preference"] = "preference"
    level_of_measurement: Literal["nominal"] = "nominal"
    between: tuple[str, str]
    """Two fields of the rubric."""
    options: NamedOptions = [Option(value="A"), Option(value="B"), Option(value="tie")]
    usual: ClassVar[tuple[Any, ...]] = ("A", "B", "tie")

    @model_validator(mode="after")
    def _of_two(self) -> Self:
        if len(set(self.between)) < 2:
            raise ValueError(f"{self.name}: between names two different fields")
        if self.n_levels > 3:
            raise ValueError(
                f"{self.name}: a preference has two options and perhaps a tie, got {self.n_levels} "
                "options that apply; degrees of preference are a score"
            )
        for k, field in enumerate(self.between):  # so that the prompt says which text is meant
            option = self.options[k]
            if not option.description and self.key(k) != field:
                self.options[k] = option.model_copy(update={"description": field})
        return self

    @property
    def asked_as(self) -> Literal["choice"]:
        """The type of the question."""
        return "choice"

    def _also(self, index: int) -> tuple[str, ...]:
        first, second = self.between
        words = (("A", "1", "first", "model_a", first), ("B", "2", "second", "model_b", second),
                 ("tie", "draw", "equal", "same"))  # fmt: skip
        taken = {form for k in range(len(self.options)) for form in plain_forms(self.key(k))}
        own = words[index] if index < self.n_levels else ()
        return tuple(word for word in own if taken.isdisjoint(plain_forms(word)))


class Noul(_Dimension):
    """True or false. Option 0 is false and option 1 is true, whatever the order in the file."""

    type: Literal["noul"] = "noul"
    options: Options = [Option(value=False), Option(value=True)]
    level_of_measurement: LevelOfMeasurement = "nominal"
    usual: ClassVar[tuple[Any, ...]] = (False, True)
    synonyms: ClassVar[dict[str, tuple[str, ...]]] = {
        "false": ("no", "f", "n", "0"),
        "true": ("yes", "t", "y", "1"),
    }

    @field_validator("options")
    @classmethod
    def _false_then_true(cls, options: list[Option]) -> list[Option]:
        words = {word: key for key, others in cls.synonyms.items() for word in (key, *others)}
        words |= {"off": "false", "on": "true"}  # as YAML 1.1 read them
        beside = [option for option in options if option.not_applicable]
        options = [option for option in options if not option.not_applicable]
        keys = [format_value(option.value).casefold() for option in options]
        found = {words.get(key): o.description for key, o in zip(keys, options, strict=True)}
        if len(options) != 2 or found.keys() != {"false", "true"}:
            raise ValueError(f"the options of a noul are true and false, got {sorted(keys)}")
        return [*(Option(value=value, description=found[format_value(value)])
                  for value in (False, True)), *beside]  # fmt: skip


class Multi(_Dimension):
    """Options of which several, or none, may be chosen.

    Engines are asked a yes or no for each: `Rubric.dimensions` has these questions in its place,
    `Rubric.sets` the dimension itself. `slm_judge.data.sets` goes from one to the other.
    """

    type: Literal["multi"] = "multi"
    level_of_measurement: Literal["nominal"] = "nominal"
    separator: NonEmpty = "|"
    """Between the options of a cell that is a text and no JSON list."""
    distance: Literal["masi", "jaccard"] = "masi"
    """Between two sets, for alpha; see `agreement.sets`."""

    @model_validator(mode="after")
    def _valid_set(self) -> Self:
        if self.n_levels < len(self.options):
            raise ValueError(
                f"{self.name}: a multi has no not_applicable; none of its options is an answer "
                "too. Where it does not apply, use ask_if, or a dimension of its own before it"
            )
        if inside := [o.value for o in self.options if self.separator in format_value(o.value)]:
            raise ValueError(f"{self.name}: {inside} hold the separator {self.separator!r}")
        return self

    @cached_property
    def members(self) -> list[str]:
        """The names of its yes-or-no questions, in option order: `<name>_<option>`."""
        slugs = [re.sub("[^A-Za-z0-9]+", "_", self.key(k)).strip("_")
                 for k in range(len(self.options))]  # fmt: skip
        once = Counter(map(str.casefold, slugs))
        return [f"{self.name}_{slug if slug and once[slug.casefold()] == 1 else k}"
                for k, slug in enumerate(slugs, start=1)]  # fmt: skip

    def nouls(self) -> list[Noul]:
        """Its yes-or-no questions."""
        found = []
        for k, (name, option) in enumerate(zip(self.members, self.options, strict=True)):
            meaning = f": {option.description}" if option.description else ""
            which = f"Does this apply? {self.key(k)}{meaning}"
            found.append(
                Noul(
                    name=name,
                    instructions=f"{self.instructions} {which}",
                    paraphrases=[f"{other} {which}" for other in self.paraphrases],
                    ask_if=self.ask_if,
                )
            )
        return found


if TYPE_CHECKING:
    _Asked = Score | Choice | Noul | Preference
else:  # what a file may hold; a `Multi` is replaced by its questions
    _Asked = Annotated[Score | Choice | Noul | Preference | Multi, Field(discriminator="type")]
Dimension = Score | Choice | Noul | Preference


class Rubric(BaseModel):
    """A validated rubric."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Short name, used in reports and for the files of the judge."""
    instructions: NonEmpty
    """What the annotators were told about the task as a whole."""
    fields: list[str] = Field(min_length=1)
    """Input columns in display order."""
    dimensions: list[_Asked] = Field(min_length=1)
    """The questions, in the order in which they are answered; of a `multi`, one an option."""
    sets: list[Multi] = Field(default=[], exclude_if=lambda given: not given)
    """The dimensions of the type `multi`."""
    paraphrases: list[NonEmpty] = []
    """Other wordings of the instructions; training can use them, annotation never does."""
    _changed: list[str] = PrivateAttr(default_factory=list)

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
    def _one_question_an_option(self) -> Self:
        asked: list[Dimension] = []
        for dimension in self.dimensions:
            if isinstance(dimension, Multi):
                asked += dimension.nouls()
                self.sets.append(dimension)
            else:
                asked.append(dimension)
        self.dimensions[:] = asked
        names = {dimension.name for dimension in asked}
        if lost := [m for one in self.sets for m in one.members if m not in names]:
            raise ValueError(f"sets: there are no dimensions {', '.join(lost)}; write type: multi")
        return self

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [
            *self.fields,
            *(one.name for one in self.sets),
            *(dimension.name for dimension in self.dimensions),
        ]
        names += [f"{d.name}{APPLICABLE}" for d in self.dimensions if d.n_levels < len(d.options)]
        repeated = sorted(name for name, times in Counter(names).items() if times > 1)
        if repeated:
            raise ValueError(f"fields and dimensions need distinct names, repeated: {repeated}")
        return self

    @model_validator(mode="after")
    def _one_pair(self) -> Self:
        for one in (d for d in self.dimensions if isinstance(d, Preference)):
            if unknown := [field for field in one.between if field not in self.fields]:
                raise ValueError(
                    f"{one.name}: between names {', '.join(unknown)}, which is no field; the "
                    f"fields are {', '.join(self.fields)}"
                )
            if set(one.between) != set(self.pair or ()):
                raise ValueError(
                    f"{one.name}: all preferences of a rubric are between the same two fields, "
                    f"here {' and '.join(self.pair or ())}; write a rubric for each pair"
                )
        return self

    @model_validator(mode="after")
    def _conditions(self) -> Self:
        for position, dimension in enumerate(self.dimensions):
            earlier = {other.name: other for other in self.dimensions[:position]}
            for name, values in dimension.ask_if.items():
                if name not in earlier:
                    members = next((", ".join(s.members) for s in self.sets if s.name == name), "")
                    hint = members and f"; of a multi, name an option's question: {members}"
                    raise ValueError(
                        f"{dimension.name}: ask_if names {name!r}, which is no dimension before it"
                        + hint
                    )
                unknown = [value for value in values if earlier[name].index(value) is None]
                if unknown or not values:
                    keys = [earlier[name].key(k) for k in range(len(earlier[name].options))]
                    raise ValueError(
                        f"{dimension.name}: ask_if needs answers to {name}, which are "
                        f"{', '.join(keys)}; got {unknown or 'none'}"
                    )
        return self

    def asked(self, given: Mapping[str, int]) -> dict[str, bool]:
        """Which dimensions apply, by their `ask_if`.

        Args:
            given: dimension -> option index of the answer. Where a dimension has none, it keeps no
                other one from being asked.
        """
        found: dict[str, bool] = {}
        for one in self.dimensions:
            found[one.name] = all(
                found.get(name, True)
                and (name not in given or given[name] in map(self.dimension(name).index, values))
                for name, values in one.ask_if.items()
            )
        return found

    @property
    def conditional(self) -> bool:
        """Whether a dimension is only asked of some items."""
        return any(dimension.ask_if for dimension in self.dimensions)

    @property
    def pair(self) -> tuple[str, str] | None:
        """The two fields between which there is a preference, if there is any."""
        return next((d.between for d in self.dimensions if isinstance(d, Preference)), None)

    def exchanged(self, state: Mapping[str, str]) -> dict[str, str]:
        """An item whose two texts of `pair` changed places."""
        assert self.pair
        first, second = self.pair
        return {**state, first: state[second], second: state[first]}

    def reversed(self) -> "Rubric":
        """The same rubric with each dimension's options from the last to the first."""
        return self.model_copy(update={"dimensions": [d.reversed() for d in self.dimensions]})

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

    @property
    def as_written(self) -> list[Dimension | Multi]:
        """The dimensions as people answer them: a set in place of its first question."""
        first = {one.members[0]: one for one in self.sets}
        later = {name for one in self.sets for name in one.members[1:]}
        return [first.get(d.name, d) for d in self.dimensions if d.name not in later]

    def overview(self) -> list[str]:
        """A line a dimension."""
        lines = []
        for one in self.as_written:
            line = f"{one.name}: {one.type}, {one.n_levels} options, {one.level_of_measurement}"
            if beside := [one.key(k) for k in range(one.n_levels, len(one.options))]:
                line += f"; not applicable: {', '.join(beside)}"
            if isinstance(one, Preference):
                line += f"; between {' and '.join(one.between)}, read in both orders"
            for name, values in one.ask_if.items():
                line += f"; asked if {name} is {' or '.join(map(format_value, values))}"
            lines.append(line)
        return lines

    def warnings(self) -> list[str]:
        """What is valid, but limits where the judge can run or was changed as it was read."""
        found = [
            f"field {name}: annotation writes a column of this name, so it will need --prefix"
            for name in self._written(self.fields)
        ]
        found += self._changed
        for one in self.sets:
            found.append(
                f"{one.name}: engines other than slm-judge answer {len(one.members)} questions, "
                f"{one.members[0]} and so on, and take what is more probable than not"
            )
        if self.pair:
            found.append(
                "preference: slm-judge reads each item twice, the two texts exchanged the second "
                "time; engines other than slm-judge read it once, in the order that they are given"
            )
        if self.conditional:
            found.append(
                "ask_if: engines other than slm-judge answer every question, also those that do "
                "not apply; leave these answers out"
            )
        for score in (d for d in self.dimensions if isinstance(d, Score)):
            if score.range:
                found.append(f"{score.name}: reads {score.rule}; annotation also writes "
                             f"{score.name}_expected, the mean level")  # fmt: skip
            if score.reordered:
                found.append(
                    f"{score.name}: its levels were put in order, from {score.key(0)} to "
                    f"{score.key(score.n_levels - 1)}"
                )
            if score.asked_as == "score" and len(score.options) > LLAMA_SERVER_MAX_LEVELS:
                found.append(
                    f"{score.name}: llama-server answers scores of at most "
                    f"{LLAMA_SERVER_MAX_LEVELS} levels, this one has {len(score.options)} "
                    "(slm-judge itself is not limited)"
                )
        return found

    def _written(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are also columns that we write beside the labels."""
        kinds = ("confidence", "probabilities")
        made = [f"{d.name}_{kind}" for d in (*self.dimensions, *self.sets) for kind in kinds]
        made += [f"{d.name}_expected" for d in self.dimensions if d.span]
        made += [f"{d.name}{FLIPPED}" for d in self.dimensions if isinstance(d, Preference)]
        return sorted({"item_id", "outcome", "review_probability", *made} & set(names))

    def to_json(self) -> str:
        """JSON that `from_json` reads back."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = "The rubric") -> "Rubric":
        """Read what `to_json` wrote; `origin` is named in errors.

        Raises:
            RubricError: `text` is not a valid rubric.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RubricError(f"{origin} is not valid JSON: {error}") from error
        return cls.parse(raw, origin)

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
            rubric = cls.model_validate(raw, context=(changed := list[str]()))
            rubric._changed.extend(dict.fromkeys(changed))
            return rubric
        except ValidationError as error:
            raise RubricError(f"{origin} is not a valid rubric:\n{explain(error)}") from error

    @classmethod
    def from_file(cls, path: str | Path) -> "Rubric":
        """Read a rubric from a YAML (or JSON) file.

        Raises:
            RubricError: the file is missing, is not YAML, or is not a valid rubric, or a dimension
                has the name of another column that we write.
        """
        rubric = cls.parse(read_yaml(path, RubricError), str(path))
        if taken := rubric._written(one.name for one in (*rubric.dimensions, *rubric.sets)):
            raise RubricError(
                f"{path}: no dimension can be called {' or '.join(taken)}: a column of this name "
                "is written beside the labels. Choose another name, and map it to the data's "
                "column with `columns` in the recipe."
            )
        return rubric


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2 with decimal numbers alone, so that `no`, 007, 12:30 and dates
    stay what was typed; a key that stands twice is an error.
    """

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As in `SafeLoader`, where a later value silently replaces an earlier one."""
        first: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            if key_node.tag.endswith(":merge"):
                continue
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if isinstance(key, Hashable) and key in first:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key_node.value!r} of line {first[key]} stands there again",
                    problem_mark=key_node.start_mark,
                )
            if isinstance(key, Hashable):
                first[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


for _tag, _pattern in {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
             r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": "<<",
}.items():  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"({_pattern})\\Z"), None)


def read_yaml(path: str | Path, error_type: type[Exception]) -> object:
    """Read a YAML file, raising `error_type` with a plain message where that fails."""
    try:
        loader = _Loader(Path(path).read_text(encoding="utf-8"))
        loader.name = str(path)
        return loader.get_single_data()
    except (OSError, UnicodeDecodeError) as error:
        raise error_type(f"Cannot read {path}: {error}") from error
    except RecursionError as error:
        raise error_type(f"{path} is nested too deeply to be read.") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        # The latter are what PyYAML raises at thousands of digits, and at `!!bool x` and the like.
        raise error_type(f"{path} is not valid YAML: {error}") from error


def explain(error: ValidationError) -> str:
    """One line a problem: where it is and what is wrong."""
    problems, lines = error.errors(), []
    for problem in problems[:_PROBLEMS]:
        where = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"  {where[:200]}: {message[:2000]}")
    if more := len(problems[_PROBLEMS:]):
        lines.append(f"  and {more} more")
    return "\n".join(lines)


def format_value(value: object) -> str:
    """The one text form of a value: true, -2, 2.5, joy."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _plain_text(raw: object) -> str | None:
    """A label from outside as a text; None for what is no label."""
    raw = raw.item() if isinstance(raw, np.generic) else raw
    if isinstance(raw, str):
        return raw
    known = isinstance(raw, Number | datetime.date | datetime.time) and raw == raw  # not NaN
    return format_value(raw) if known else None


def _owned(
    texts: Mapping[str, Iterable[str]], exact: Mapping[str, int]
) -> dict[str | float, int | None]:
    """Plain form of each option's texts -> the option, or None where several have the form."""
    owned: dict[str | float, int | None] = {}
    for key, own in texts.items():
        for form in {form for text in own for form in plain_forms(text)}:
            owned[form] = None if form in owned else exact[key]
    return owned


def plain_forms(text: str) -> list[str | float]:
    """What a text plainly says, whatever its letter case, spaces and way of writing a number."""
    text = normalise(text).replace("\u2212", "-")
    plain = nfc(" ".join(text.split()).casefold())
    return [plain, float(plain)] if _NUMBER.fullmatch(plain) else [plain]

"""Regressions on labels, corrected for the judge's errors: `slm-judge estimate --model`."""

from typing import TYPE_CHECKING, Any

import numpy as np

from slm_judge.agreement.aggregate import level_values
from slm_judge.agreement.alpha import Floats
from slm_judge.agreement.estimate import (
    CorpusEstimate,
    ModelRows,
    corpus_coefficients,
    linear,
    logistic,
)
from slm_judge.agreement.sample import Whole
from slm_judge.data.tables import names
from slm_judge.errors import DataError, require
from slm_judge.rubric import Dimension

if TYPE_CHECKING:
    from .estimate import Known, Labelled


def estimate_model(formula: str, known: "Known", logit: bool) -> dict[str, CorpusEstimate]:
    """Coefficients of a regression whose outcome, or other variables, are labels.

    Scores count as numbers, true as 1, and a choice by its options, of which the first that occurs
    is the reference; as an outcome, it is `dimension=option`. A column of the corpus is a number
    where all its cells are. Each annotator's label is a row with its share of the item's weight.

    Args:
        formula: "outcome ~ terms", the terms as `formulaic` reads them.
        known: corpus and annotations.
        logit: logistic regression in place of a linear one.

    Raises:
        DataError: the formula cannot be read or names what is not there, or the annotated items do
            not determine the coefficients.
    """
    outcome, terms, used = _parse(formula)
    name, _, option = outcome.partition("=")
    dimensions = [d for d in known.rubric.dimensions if d.name in (*used, name)]
    if asked := [d.name for d in dimensions if d.ask_if]:
        raise DataError(
            f"{formula}: {names(asked)} is only asked of some items (`ask_if`), and which these "
            "are is the judge's answer as well, so nothing is estimated."
        )
    if sets := [one for one in known.rubric.sets if one.name in (*used, name)]:
        raise DataError(
            f"{formula}: {sets[0].name} is a set; name its options: {names(sets[0].members)}."
        )
    own = {d.name for d in dimensions}
    columns = sorted({*used, name} - own)
    there = {*known.table.columns, *known.further}
    if missing := [c for c in columns if c not in there]:
        raise DataError(
            f"{formula}: there is no {names(missing)}. The rubric has "
            f"{names([d.name for d in known.rubric.dimensions])}, the corpus the columns "
            f"{names(known.table.columns)}."
        )
    if not dimensions:
        raise DataError(
            f"{formula} has no dimension of the rubric, so there is nothing to correct."
        )
    whole = [i for i in known.rows if all(known.cell(c, i) for c in columns)]
    if left := len(known.rows) - len(whole):
        known.notes.append(f"{formula}: {left} items lack {names(columns)}: left out.")
    labelled = known.labelled(dimensions, whole)
    values = {c: _column([known.cell(c, i) for i in labelled.ids]) for c in columns}
    texts = [c for c in columns if values[c].dtype.kind == "U"]
    if texts:
        known.notes.append(f"{formula}: {names(texts)} are categories, since not all are numbers.")
    y = _outcome(formula, name, option, known, labelled, values)
    if logit and not set(np.unique(y)) <= {0.0, 1.0}:
        raise DataError(f"{formula}: the outcome of a logistic regression is 0 or 1.")
    matrix, coefficients = _matrix(formula, terms, labelled, dimensions, values)
    n_judge, judge, people = len(labelled.judge.items), labelled.judge, labelled.people
    rows = (
        ModelRows(matrix[n_judge:], y[n_judge:], people.items, people.share),
        ModelRows(matrix[:n_judge], y[:n_judge], judge.items, judge.share),
    )
    try:
        found = corpus_coefficients(*rows, labelled.sample, logistic if logit else linear)
    except ValueError as error:
        raise DataError(
            f"{formula} cannot be estimated from {len(labelled.sample.rows)} annotated items: "
            f"{error}. Take fewer terms, or annotate more."
        ) from None
    return dict(zip(coefficients, found, strict=True))


def _parse(formula: str) -> tuple[str, Any, set[str]]:
    """Outcome, terms, and the names that these use."""
    formulaic = require("formulaic", "evaluate")
    outcome, mark, right = formula.partition("~")
    if not mark or not outcome.strip() or not right.strip():
        raise DataError(
            f"A model is written as outcome ~ terms, e.g. refund ~ channel: {formula!r}"
        )
    try:
        terms = formulaic.Formula(right)
    except Exception as error:  # of many kinds, on any text
        raise DataError(f"{formula!r} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(terms, formulaic.SimpleFormula):
        raise DataError(
            f"{formula!r} cannot be read: terms are joined by + and :, e.g. a + b + a:b."
        )
    return outcome.strip(), terms, set(terms.required_variables)


def _column(cells: list[str]) -> Any:
    """Numbers where all cells are, else texts."""
    try:
        found = np.array([float(cell) for cell in cells])
    except ValueError:
        return np.array(cells)
    return found if np.isfinite(found).all() else np.array(cells)


def _items(labelled: "Labelled") -> Whole:
    """The item of each row: first those of the judge, then those of people."""
    found: Whole = np.concatenate(
        [labelled.judge.items, labelled.sample.rows[labelled.people.items]]
    )
    return found


def _options(labelled: "Labelled", name: str) -> Whole:
    found: Whole = np.concatenate([labelled.judge.options[name], labelled.people.options[name]])
    return found


def _outcome(
    formula: str,
    name: str,
    option: str,
    known: "Known",
    labelled: "Labelled",
    values: dict[str, Any],
) -> Floats:
    """The outcome of each row."""
    if name in values:
        if values[name].dtype.kind == "U":
            raise DataError(f"{formula}: {name} holds texts; an outcome is a number.")
        numbers: Floats = values[name][_items(labelled)]
        return numbers
    dimension = known.rubric.dimension(name)
    options = _options(labelled, name)
    index = dimension.index(option) if option else None
    if index is None and (option or dimension.asked_as == "choice"):
        keys = ", ".join(dimension.key(k) for k in range(len(dimension.options)))
        raise DataError(f"{formula}: say which option, as in {name}=...; {name} has {keys}.")
    if index is not None:
        return np.asarray(options == index, dtype=np.float64)
    levels: Floats = level_values(dimension)[options]
    return levels


def _matrix(
    formula: str,
    terms: Any,
    labelled: "Labelled",
    dimensions: list[Dimension],
    values: dict[str, Any],
) -> tuple[Floats, list[str]]:
    """The terms of each row, and the names of the coefficients."""
    pandas = require("pandas", "evaluate")
    frame: dict[str, Any] = {name: found[_items(labelled)] for name, found in values.items()}
    for dimension in dimensions:
        options = _options(labelled, dimension.name)
        if dimension.asked_as == "choice":
            keys = [dimension.key(k) for k in range(len(dimension.options))]
            codes = pandas.Categorical.from_codes(options, keys)
            frame[dimension.name] = codes.remove_unused_categories()
        else:
            frame[dimension.name] = level_values(dimension)[options]
    try:
        matrix = terms.get_model_matrix(pandas.DataFrame(frame), context={}, na_action="raise")
    except Exception as error:  # of many kinds: any expression may stand in a formula
        raise DataError(f"{formula!r} cannot be computed: {error}") from error
    found = np.asarray(matrix, dtype=float)
    if not np.isfinite(found).all():
        raise DataError(f"{formula!r} gives numbers that are not defined for some items.")
    return found, list(matrix.columns)

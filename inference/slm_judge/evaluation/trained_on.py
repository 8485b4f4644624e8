"""What a judge was trained and chosen on, which says nothing about its errors on other items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_judge.data.item import Item, load_split, split_file
from slm_judge.data.split import text_key
from slm_judge.data.text import read_state
from slm_judge.rubric import Rubric
from slm_judge.run import Run

_USED = ("train", "validation")  # the checkpoint and the temperatures are chosen on the second


@dataclass(frozen=True)
class TrainedOn:
    """Items, by what identifies them."""

    names: frozenset[str]
    """Empty where the run numbered its rows."""
    texts: frozenset[str]
    """Keys of their texts."""
    columns: Mapping[str, str]
    """Field of the rubric -> column."""

    def by_text(self, rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> set[str]:
        """Those of the items whose row, or other, has the text of one; none without all fields."""
        if not set(self.columns.values()) <= set(columns):
            return set()
        found = set()
        for name, row in rows.items():
            state, problem = read_state({f: row.get(c) for f, c in self.columns.items()})
            if not problem and text_key(state) in self.texts:
                found.add(name)
        return found

    def by_annotation(self, items: Sequence[Item]) -> set[str]:
        """Those of the annotated items that stand with the text of one among the annotations."""
        return {
            item.item_id
            for item in items
            if item.state.keys() == self.columns.keys() and text_key(item.state) in self.texts
        }


def trained_on(run: Run, rubric: Rubric, columns: Mapping[str, str]) -> TrainedOn:
    """The training and validation items of a run.

    Args:
        run: of the judge.
        rubric: names the fields.
        columns: field -> column of the corpus, where they differ.

    Raises:
        JudgeError: it is not a run, or was not started.
    """
    items = []
    for name in _USED:
        run.require(split_file(run.data, name), f"train {run.recipe_file}")
        items += load_split(run.data, name)
    numbered = run.recipe().data.item_id is None
    return TrainedOn(
        frozenset() if numbered else frozenset(item.item_id for item in items),
        frozenset(text_key(item.state) for item in items),
        {name: columns.get(name, name) for name in rubric.fields},
    )

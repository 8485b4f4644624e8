"""`slm-judge push --data`: the annotated items of a run as rows, for a dataset on the Hub."""

import json
from collections.abc import Iterator

from slm_judge.data.item import ITEM_ID, Item, is_named, load_split
from slm_judge.errors import DataError
from slm_judge.rubric import Rubric
from slm_judge.run import Run

SPLITS = ("train", "validation", "test")
_ANNOTATOR, _GROUP = "annotator_id", "group"


def annotated_items(run: Run) -> tuple[dict[str, bytes], dict[str, int]]:
    """The splits as JSON Lines with a row an annotation, and the number of items in each.

    Names of people and groups may tell who they are: they become numbers, the same in all splits.

    Raises:
        DataError: the rubric has a name for itself that a column of the table needs.
    """
    rubric, splits = run.rubric(), {name: load_split(run.data, name) for name in SPLITS}
    names = {*rubric.fields, *(d.name for d in rubric.dimensions)}
    if taken := sorted(names & {ITEM_ID, _ANNOTATOR, _GROUP}):
        raise DataError(
            f"The dataset has a column {taken[0]!r} of its own; the rubric has one of that name. "
            "Push without --data."
        )
    items = [item for split in splits.values() for item in split]
    people = {person for item in items for votes in item.votes.values() for person in votes}
    annotators = {name: k for k, name in enumerate(sorted(filter(is_named, people)), start=1)}
    groups = {name: k for k, name in enumerate(sorted({i.group for i in items}), start=1)}
    files = {}
    for name, split in splits.items():
        rows = (row for item in split for row in _rows(item, rubric, annotators, groups))
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        files[f"{name}.jsonl"] = "".join(lines).encode()
    return files, {name: len(split) for name, split in splits.items()}


def _rows(
    item: Item, rubric: Rubric, annotators: dict[str, int], groups: dict[str, int]
) -> Iterator[dict[str, object]]:
    for person in dict.fromkeys(p for votes in item.votes.values() for p in votes):
        row: dict[str, object] = {ITEM_ID: item.item_id, _ANNOTATOR: annotators.get(person)}
        row |= {_GROUP: groups[item.group], **item.state}
        for dimension in rubric.dimensions:
            option = item.votes.get(dimension.name, {}).get(person)
            row[dimension.name] = None if option is None else dimension.values[option]
        yield row

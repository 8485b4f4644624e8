"""Annotated items, as the stages of a run hand them on."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from slm_judge.errors import DataError
from slm_judge.files import atomic_file
from slm_judge.rubric import explain

from . import ITEM_ID as ITEM_ID


@dataclass
class Item:
    """A text, or several, and what the annotators said about it."""

    item_id: str
    state: dict[str, str]
    """The rubric's fields, normalised."""
    votes: dict[str, dict[str, int]]
    """Dimension -> annotator -> option index, of those who answered it. Where no column names the
    annotators, they are `unnamed`."""
    group: str
    """Items of one group stay in one split."""


_ITEM = TypeAdapter(Item)


def unnamed(number: int) -> str:
    """The key of an item's `number`-th (from 0) vote by somebody without a name.

    Names are read without spaces around them, so none of them is such a key.
    """
    return f" {number + 1}" if number else ""


def is_named(annotator: str) -> bool:
    """Whether a key of `Item.votes` names a person, who may have judged other items too."""
    return bool(annotator) and not annotator.startswith(" ")


def save_splits(splits: Mapping[str, Sequence[Item]], folder: Path) -> None:
    """Write one JSON Lines file a split."""
    for name, items in splits.items():
        with (
            atomic_file(split_file(folder, name)) as path,
            path.open("w", encoding="utf-8") as file,
        ):
            file.writelines(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)


def split_file(folder: Path, name: str) -> Path:
    """Where the items of "train", "validation" or "test" are."""
    return folder / f"{name}.jsonl"


def load_split(folder: Path, name: str) -> list[Item]:
    """Read one of the splits that `save_splits` wrote.

    Raises:
        DataError: it is damaged; the line is named.
    """
    path, items = split_file(folder, name), []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            items.append(_ITEM.validate_json(line, strict=True))
        except ValidationError as error:
            raise DataError(f"{path}, line {number} is damaged:\n{explain(error)}") from error
    return items


def votes_of(items: Iterable[Item], dimension: str) -> list[list[int]]:
    """Per item, the option indices that annotators chose for a dimension."""
    return [list(item.votes.get(dimension, {}).values()) for item in items]


def sample_rows(total: int, most: int | None, seed: int) -> list[int]:
    """Positions of a seeded sample of at most so many items, in their order: files are sorted."""
    if most is None or total <= most:
        return [*range(total)]
    return sorted(random.Random(f"sample/{seed}").sample(range(total), most))  # noqa: S311

"""Annotated data: read, checked, grouped into items, and split before anything else."""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from slm_judge.errors import DataError
from slm_judge.recipe import DataConfig
from slm_judge.rubric import Rubric, format_value

from .item import Item, votes_of
from .tables import read_table
from .text import normalise

_EXAMPLES = 3


@dataclass
class Problems:
    """What is wrong with the data, counted, with the first examples of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, example: str) -> None:
        """Count one problem."""
        self.counts[kind] += 1
        if len(self.examples[kind]) < _EXAMPLES:
            self.examples[kind].append(example)

    def raise_any(self, origin: str) -> None:
        """Raise one error with all problems, if there is any.

        Raises:
            DataError: there is.
        """
        if not self.counts:
            return
        lines = [f"{origin} cannot be used:"]
        for kind, count in self.counts.items():
            lines.append(f"  {count} x {kind}")
            lines += [f"      {example}" for example in self.examples[kind]]
        raise DataError("\n".join(lines))


def load_splits(config: DataConfig, rubric: Rubric, seed: int) -> dict[str, list[Item]]:
    """Read, check and split the data of a recipe.

    Returns:
        Items of "train", "validation" and "test".

    Raises:
        DataError: lists every problem of the data.
    """
    problems = Problems()
    given = {"train": config.train, "validation": config.validation, "test": config.test}
    splits = {
        name: read_items(read_table(location), config, rubric, problems, name)
        for name, location in given.items()
        if location
    }
    if config.drop_leaks:
        splits = _without_leaks(splits)
    _check_leaks(splits, problems)
    _check_variety(splits["train"], rubric, problems)
    problems.raise_any(", ".join(location for location in given.values() if location))
    missing = {
        name: share
        for name, share in (("validation", config.validation_share), ("test", config.test_share))
        if name not in splits
    }
    splits |= split_items(splits["train"], missing, seed)
    if config.limit:
        rng = random.Random(seed)  # noqa: S311
        splits["train"] = rng.sample(splits["train"], min(config.limit, len(splits["train"])))
    return splits


# --- reading ------------------------------------------------------------------------------------


def read_items(
    table: Dataset, config: DataConfig, rubric: Rubric, problems: Problems, name: str
) -> list[Item]:
    """Group the rows of a table into items; problems are added to `problems`."""
    columns = _columns(table, config, rubric, problems, name)
    if columns is None:
        return []
    items: dict[str, Item] = {}
    for number, row in enumerate(table, start=1):
        where = f"{name} row {number}"
        item_id = format_value(row[columns["item_id"]]) if config.item_id else str(number)
        state = _state(row, columns, rubric, problems, where)
        item = items.get(item_id)
        if item is None:
            group = format_value(row[columns["group"]]) if config.group else item_id
            item = items[item_id] = Item(item_id, state, {}, group)
        elif not config.annotator:
            problems.add("the same item_id twice (wide layout)", f"{where}: {item_id}")
        elif state != item.state:
            problems.add("the same item_id with different texts", f"{where}: {item_id}")
        _read_votes(row, item, columns, config, rubric, problems, where)
    return list(items.values())


def _columns(
    table: Dataset, config: DataConfig, rubric: Rubric, problems: Problems, name: str
) -> dict[str, str] | None:
    """Our name -> the table's column; None where some are missing."""
    ours = [*rubric.fields, *(dimension.name for dimension in rubric.dimensions)]
    unknown = sorted(set(config.columns) - set(ours))
    for key in unknown:
        problems.add("columns of the recipe that the rubric does not know", key)
    columns = {key: config.columns.get(key, key) for key in ours}
    for key in ("item_id", "annotator", "group"):
        if getattr(config, key):
            columns[key] = getattr(config, key)
    missing = [column for column in columns.values() if column not in table.column_names]
    for column in missing:
        problems.add(
            "missing columns", f"{name}: {column} (it has {', '.join(table.column_names)})"
        )
    return None if missing or unknown else columns


def _state(
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    rubric: Rubric,
    problems: Problems,
    where: str,
) -> dict[str, str]:
    state = {}
    for name in rubric.fields:
        value = row[columns[name]]
        state[name] = "" if value is None else normalise(format_value(value))
        if not state[name].strip():
            problems.add(f"empty texts in {columns[name]}", where)
    return state


def _read_votes(
    row: Mapping[str, Any],
    item: Item,
    columns: Mapping[str, str],
    config: DataConfig,
    rubric: Rubric,
    problems: Problems,
    where: str,
) -> None:
    annotator = format_value(row[columns["annotator"]]) if config.annotator else ""
    for dimension in rubric.dimensions:
        raw = row[columns[dimension.name]]
        if raw is None or str(raw).strip() == "":
            continue  # not answered
        option = dimension.index(raw)
        if option is None:
            allowed = ", ".join(dimension.key(i) for i in range(min(len(dimension.options), 8)))
            problems.add(
                f"labels of {dimension.name} outside the rubric",
                f"{where}: {raw!r} (the rubric has {allowed}, ...)",
            )
            continue
        votes = item.votes.setdefault(dimension.name, {})
        earlier = votes.setdefault(annotator, option)
        if earlier != option:
            values = f"{dimension.key(earlier)} and {dimension.key(option)}"
            problems.add(
                "the same item and annotator twice with different labels",
                f"{where}: item {item.item_id}, annotator {annotator}, {dimension.name} {values}",
            )


# --- checks over items --------------------------------------------------------------------------


def _text_key(item: Item) -> str:
    """Identifies the item's text, whatever its id."""
    text = json.dumps(item.state, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.casefold().encode()).hexdigest()


def _check_leaks(splits: Mapping[str, Sequence[Item]], problems: Problems) -> None:
    """The same text or group in two splits that the user gave."""
    texts: dict[str, tuple[str, str]] = {}
    groups: dict[str, str] = {}
    for name, items in splits.items():
        for item in items:
            first = texts.setdefault(_text_key(item), (name, item.item_id))
            if first[0] != name:
                where = f"{first[0]} item {first[1]} and {name} item {item.item_id}"
                problems.add("the same text in two splits (data.drop_leaks drops them)", where)
            if groups.setdefault(item.group, name) != name:
                problems.add("the same item or group in two splits", f"{item.group}")


def _without_leaks(splits: Mapping[str, list[Item]]) -> dict[str, list[Item]]:
    """Drop items whose text stands in a later split (train, validation, test)."""
    kept: dict[str, list[Item]] = {}
    later: set[str] = set()
    for name in ("test", "validation", "train"):
        if name in splits:
            keys = [_text_key(item) for item in splits[name]]
            pairs = zip(splits[name], keys, strict=True)
            kept[name] = [item for item, key in pairs if key not in later]
            later |= set(keys)
    return {name: kept[name] for name in splits}


def _check_variety(items: Sequence[Item], rubric: Rubric, problems: Problems) -> None:
    if not items:
        return
    for dimension in rubric.dimensions:
        used = {vote for votes in votes_of(items, dimension.name) for vote in votes}
        if len(used) < 2:
            found = f"only {dimension.key(used.pop())}" if used else "no labels at all"
            problems.add("dimensions with fewer than two different labels",
                         f"{dimension.name}: {found}")  # fmt: skip


# --- splitting ----------------------------------------------------------------------------------


def split_items(
    items: Sequence[Item], shares: Mapping[str, float], seed: int
) -> dict[str, list[Item]]:
    """Split by group, seeded; items with the same text count as one group.

    Args:
        items: all items.
        shares: share of the groups per split to cut off; the rest is "train".
        seed: of the shuffle.

    Raises:
        DataError: there are too few groups for a split of each kind.
    """
    groups = _merge_groups(items)
    order = sorted(groups)
    random.Random(seed).shuffle(order)  # noqa: S311
    splits: dict[str, list[Item]] = {}
    for name, share in shares.items():
        size = round(share * len(groups))
        cut, order = order[:size], order[size:]
        splits[name] = [item for key in cut for item in groups[key]]
    splits["train"] = [item for key in order for item in groups[key]]
    empty = [name for name, part in splits.items() if not part]
    if empty:
        raise DataError(f"{len(groups)} groups of items are too few: nothing for {empty}.")
    return splits


def _merge_groups(items: Iterable[Item]) -> dict[str, list[Item]]:
    """Groups joined where they share a text (union-find)."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    items = list(items)
    for item in items:
        parent[root(f"text:{_text_key(item)}")] = root(f"group:{item.group}")
    merged: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        merged[root(f"group:{item.group}")].append(item)
    return {min(item.item_id for item in part): part for part in merged.values()}


def file_hash(location: str) -> str | None:
    """SHA-256 of a file; None for what is not one."""
    path = Path(location)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

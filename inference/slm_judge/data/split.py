"""Annotated data of a recipe: read, checked, and split before anything else."""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from slm_judge.errors import DataError
from slm_judge.recipe import DataConfig
from slm_judge.rubric import Rubric

from .item import Item, votes_of
from .predictions import read_predictions
from .read import Columns, Findings, advice, likely_annotators, open_rows, read_items
from .sets import columns_of, lacking, options_of, unfold
from .tables import Rows, names


def load_splits(
    config: DataConfig, rubric: Rubric, seed: int, notes: list[str] | None = None
) -> dict[str, list[Item]]:
    """Read, check and split the data of a recipe.

    Args:
        config: where the data is.
        rubric: fields and dimensions.
        seed: of the split.
        notes: takes what people should know about how the data was read.

    Returns:
        Items of "train", "validation" and "test".

    Raises:
        DataError: lists every problem of the data.
    """
    findings = Findings()
    given = {"train": config.train, "validation": config.validation, "test": config.test}
    wanted = _wanted(config, rubric)
    options = options_of(rubric, _columns(config).of)
    tables = {
        name: open_rows(location, wanted, options) for name, location in given.items() if location
    }
    splits = {name: _items(table, config, rubric, findings, name) for name, table in tables.items()}
    if config.drop_leaks:
        splits = _without_leaks(splits)
    _check_leaks(splits, findings)
    _check_variety(splits["train"], rubric, findings)
    origin = ", ".join(location for location in given.values() if location)
    hints = _unnamed(tables["train"], config, rubric)
    told = [told for told in (advice(tables["train"], rubric), *hints) if told]
    findings.raise_any(origin, "\n".join(told))
    findings.notes += hints
    if notes is not None:
        notes += [*(note for table in tables.values() for note in table.notes)]
        notes += findings.said(origin)
    missing = {
        name: share
        for name, share in (("validation", config.validation_share), ("test", config.test_share))
        if name not in splits
    }
    splits |= split_items(splits["train"], missing, seed)
    if not any(item.votes for item in splits["validation"]):
        raise DataError(
            f"{origin}: no item of the validation split has a label, so no checkpoint could be "
            "chosen. Annotate some, or raise data.validation_share."
        )
    if config.gold:
        try:
            gold = read_predictions(config.gold, rubric, [item.item_id for item in splits["test"]])
        except DataError as error:
            raise DataError(f"data.gold: {error}") from error
        if notes is not None and len(gold.rows) < len(splits["test"]):
            notes += [f"data.gold: {note}" for note in gold.notes]
    if config.limit:
        rng = random.Random(seed)  # noqa: S311
        splits["train"] = rng.sample(splits["train"], min(config.limit, len(splits["train"])))
    return splits


def _columns(config: DataConfig) -> Columns:
    return Columns(config.item_id, config.annotator, config.group, config.columns)


def _ours(rubric: Rubric) -> list[str]:
    written = (dimension.name for dimension in rubric.as_written)
    return list(dict.fromkeys([*rubric.fields, *written, *(d.name for d in rubric.dimensions)]))


def _wanted(config: DataConfig, rubric: Rubric) -> list[str]:
    columns = _columns(config)
    fields = map(columns.of, rubric.fields)
    return [*fields, *columns_of(rubric, columns.of), *columns.named()]


def _items(
    table: Rows, config: DataConfig, rubric: Rubric, findings: Findings, name: str
) -> list[Item]:
    """The items of a split; rows that are numbered are told apart by their split."""
    columns = _columns(config).within(table)
    ours = _ours(rubric)
    unknown = sorted(set(config.columns) - set(ours))
    for key in unknown:
        findings.add("columns of the recipe that the rubric does not know", key)
    unfold(table, rubric, findings, columns.of)
    wanted = [*map(columns.of, rubric.fields), *columns.named()]
    missing = [column for column in wanted if column not in table.columns]
    missing += lacking(rubric, table.columns, columns.of)
    for column in missing:
        findings.add("missing columns", f"{name}: {column} (it has {names(table.columns)})")
    if missing or unknown:
        return []
    return read_items(table, columns, rubric, findings, "" if name == "train" else f"{name}-").items


def _unnamed(table: Rows, config: DataConfig, rubric: Rubric) -> list[str]:
    """A hint where nobody said which column names the annotator."""
    columns = Columns(config.item_id, None, config.group, config.columns)
    known = config.annotator or table.annotator
    likely = [] if known else likely_annotators(table, columns, rubric)
    if not likely:
        return []
    return [f"{names(likely)} may name who annotated: data.annotator of the recipe says so."]


def text_key(state: Mapping[str, str]) -> str:
    """Identifies the text of an item, whatever its id, its letter case and its white space."""
    plain = {name: " ".join(text.split()) for name, text in state.items()}
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.casefold().encode()).hexdigest()


def _check_leaks(splits: Mapping[str, Sequence[Item]], problems: Findings) -> None:
    """The same text or group in two splits that the user gave."""
    texts: dict[str, tuple[str, str]] = {}
    groups: dict[str, str] = {}
    for name, items in splits.items():
        for item in items:
            first = texts.setdefault(text_key(item.state), (name, item.item_id))
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
            keys = [text_key(item.state) for item in splits[name]]
            pairs = zip(splits[name], keys, strict=True)
            kept[name] = [item for item, key in pairs if key not in later]
            later |= set(keys)
    return {name: kept[name] for name in splits}


def _check_variety(items: Sequence[Item], rubric: Rubric, problems: Findings) -> None:
    if not items:
        return
    members = {name for one in rubric.sets for name in one.members}
    for dimension in rubric.dimensions:
        used = {vote for votes in votes_of(items, dimension.name) for vote in votes}
        if len(used) < 2 and not (used and dimension.name in members):  # an option nobody chose
            found = f"only {dimension.key(used.pop())}" if used else "no labels at all"
            problems.add("dimensions with fewer than two different labels",
                         f"{dimension.name}: {found}")  # fmt: skip


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


def nested(items: Sequence[Item], n: int, seed: int, whole: bool = True) -> list[Item]:
    """The first n items of a seeded order: what a smaller n gives is a part of it.

    Args:
        items: all items.
        n: how many, at most.
        seed: of the order.
        whole: keep groups, and items with the same text, together, as in a split: of the order of
            groups, the first that have n items or more.
    """
    groups = [*_merge_groups(items).values()] if whole else [[item] for item in items]
    random.Random(seed).shuffle(groups)  # noqa: S311
    chosen: list[Item] = []
    for group in groups:
        if len(chosen) >= n:
            break
        chosen += group
    return chosen


def _merge_groups(items: Iterable[Item]) -> dict[str, list[Item]]:
    """Groups joined where they share a text (union-find)."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    items = list(items)
    for item in items:
        parent[root(f"text:{text_key(item.state)}")] = root(f"group:{item.group}")
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

"""ConvAbuse as published, one-hot, to the long table that `recipes/convabuse.yaml` reads.

    python -m benchmarks.convabuse ../shared/data/convabuse_raw.csv runs/data/convabuse.csv

The data: Cercas Curry, Abercrombie and Rieser, "ConvAbuse: Data, Analysis, and Benchmarks for
Nuanced Abuse Detection in Conversational AI" (EMNLP 2021), CC BY 4.0. An item is the four
utterances; conversations that share one are one group. Its texts are offensive and stay out of
the repository.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from slm_judge.files import atomic_file

FIELDS = ("prev_agent", "prev_user", "agent", "user")
SEVERITY = ("-3", "-2", "-1", "0", "1")
TYPES = ("sex_harassment", "sexist", "intellectual", "homophobic")
"""Of the seven; ableism, racist and transphobic were ticked too seldom to learn or to score."""
FOLLOW_UPS = {"target": ("generalised", "individual", "system"),
              "direction": ("explicit", "implicit")}  # fmt: skip
"""Asked about what was found abusive alone."""
COLUMNS = ("item_id", "annotator_id", "conversation", *FIELDS, "severity", *TYPES, *FOLLOW_UPS)

Row = Mapping[str, str]


def long_table(rows: Sequence[Row]) -> tuple[list[dict[str, str]], Counter[str]]:
    """A row an annotation, and what was left out, counted."""
    groups, items = _groups(rows), dict[tuple[str, ...], str]()
    seen, left_out, found = set[tuple[str, str]](), Counter[str](), list[dict[str, str]]()
    for row in rows:
        texts = tuple(row[name] for name in FIELDS)
        item = items.setdefault(texts, str(len(items) + 1))
        if (item, row["annotator_id"]) in seen:
            left_out["later annotations of the same item by the same annotator"] += 1
            continue
        seen.add((item, row["annotator_id"]))
        own = {"item_id": item, "annotator_id": row["annotator_id"]}
        own |= {"conversation": groups[row["conv_id"]], **dict(zip(FIELDS, texts, strict=True))}
        found.append(own | _labels(row, left_out))
    return found, left_out


def _groups(rows: Sequence[Row]) -> dict[str, str]:
    """Conversation -> the first of those that share items with it, directly or through others."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    first: dict[tuple[str, ...], str] = {}
    for row in rows:
        conversation = row["conv_id"]
        other = first.setdefault(tuple(row[name] for name in FIELDS), conversation)
        parent[root(conversation)] = root(other)
    return {conversation: root(conversation) for conversation in parent}


def _labels(row: Row, left_out: Counter[str]) -> dict[str, str]:
    """The answers; blank where nothing was asked. Who finds no abuse finds no type of it either."""
    (severity,) = (level for level in SEVERITY if _ticked(row, f"is_abuse.{level}"))
    abusive = int(severity) < 0
    stray = [column for column in row if "." in column and not column.startswith("is_abuse")
             and not abusive and _ticked(row, column)]  # fmt: skip
    left_out["types, targets and directions ticked where no abuse was found"] += len(stray)
    labels = {"severity": severity}
    for name in TYPES:
        labels[name] = "true" if abusive and _ticked(row, f"type.{name}") else "false"
    for name, options in FOLLOW_UPS.items():
        ticked = [option for option in options if abusive and _ticked(row, f"{name}.{option}")]
        left_out[f"answers of {name} with several ticks"] += len(ticked) > 1
        labels[name] = ticked[0] if len(ticked) == 1 else ""
    return labels


def _ticked(row: Row, column: str) -> bool:
    return float(row[column]) == 1


def make(source: Path, target: Path) -> str:
    """Write the long table; returns a line about it."""
    with source.open(encoding="utf-8", newline="") as file:
        rows, left_out = long_table(list(csv.DictReader(file)))
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    items, groups = ({row[key] for row in rows} for key in ("item_id", "conversation"))
    without = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    return (
        f"{target}: {len(rows)} annotations of {len(items)} items in {len(groups)} groups of "
        f"conversations; left out: {without or 'nothing'}."
    )


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    print(make(arguments.source, arguments.target))


if __name__ == "__main__":
    main()

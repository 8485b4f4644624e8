"""Labels of one rater for known items: predictions of a system, or right answers."""

from collections.abc import Sequence

from .errors import DataError
from .items import Item
from .rubric import Rubric
from .tables import read_table


def read_labels(location: str, rubric: Rubric, items: Sequence[Item]) -> dict[str, list[int]]:
    """Per dimension, the option of each item, from a table with `item_id` and the dimensions.

    Raises:
        DataError: columns or items are missing, or a label is not in the rubric.
    """
    table = read_table(location)
    wanted = ["item_id", *(dimension.name for dimension in rubric.dimensions)]
    if missing := sorted(set(wanted) - set(table.column_names)):
        raise DataError(f"{location} lacks the columns {', '.join(missing)}.")
    rows = {str(row["item_id"]): row for row in table.select_columns(wanted)}
    if absent := [item.item_id for item in items if item.item_id not in rows]:
        raise DataError(
            f"{location} lacks {len(absent)} of {len(items)} items, e.g. {', '.join(absent[:3])}."
        )
    found: dict[str, list[int]] = {}
    for dimension in rubric.dimensions:
        options = [dimension.index(rows[item.item_id][dimension.name]) for item in items]
        for item, option in zip(items, options, strict=True):
            if option is None:
                raise DataError(
                    f"{location}: {dimension.name} of item {item.item_id} is "
                    f"{rows[item.item_id][dimension.name]!r}, which the rubric does not have."
                )
        found[dimension.name] = [option for option in options if option is not None]
    return found

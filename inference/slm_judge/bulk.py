"""`slm-judge annotate`: a table in, the same table with the judge's columns out."""

from collections.abc import Mapping
from pathlib import Path

from .errors import DataError
from .judge import Judge
from .progress import progress_bar
from .tables import check_output, read_table, write_table


def annotate_table(
    judge: Judge,
    source: str,
    output: Path,
    columns: Mapping[str, str] | None = None,
    prefix: str = "",
    show_progress: bool = True,
) -> int:
    """Annotate every row of a table; all input columns are kept.

    Args:
        judge: the judge.
        source: file or Hub dataset, see `read_table`.
        output: `.csv`, `.tsv`, `.jsonl` or `.parquet`, written at the end, atomically.
        columns: field of the rubric -> column of the table, where they differ.
        prefix: put before the names of the new columns `<dimension>`, `<dimension>_confidence`.
        show_progress: draw a progress bar.

    Returns:
        Number of rows annotated.

    Raises:
        DataError: columns are missing or would be overwritten, or a row has no text.
    """
    check_output(output)
    table = read_table(source)
    names = {field: (columns or {}).get(field, field) for field in judge.rubric.fields}
    if missing := [column for column in names.values() if column not in table.column_names]:
        raise DataError(
            f"{source} has no columns {', '.join(missing)}; it has "
            f"{', '.join(table.column_names)}. Name the right ones with --column field=column."
        )
    added = [
        f"{prefix}{d.name}{end}" for d in judge.rubric.dimensions for end in ("", "_confidence")
    ]
    if taken := [name for name in added if name in table.column_names]:
        raise DataError(
            f"{source} already has the columns {', '.join(taken)}. Keep both with a prefix for "
            "the judge's, e.g. --prefix judge_"
        )
    texts = {field: table[column] for field, column in names.items()}
    rows = [dict(zip(texts, values, strict=True)) for values in zip(*texts.values(), strict=True)]
    with progress_bar("rows", show_progress) as progress:
        task = progress.add_task("annotating", total=len(rows))
        annotations = judge.annotate(rows, progress=lambda n: progress.advance(task, n))
    for dimension in judge.rubric.dimensions:
        name = dimension.name
        table = table.add_column(f"{prefix}{name}", [a.labels[name] for a in annotations])
        table = table.add_column(
            f"{prefix}{name}_confidence", [round(a.confidence[name], 4) for a in annotations]
        )
    write_table(table, output)
    return len(rows)

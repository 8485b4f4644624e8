"""Cells that mean something else than what is written: lists as texts, and what R has for none."""

from collections import Counter
from collections.abc import Collection

from slm_judge.data.text import is_blank

from .export import Export, parts, written_list
from .roles import looks_like_text, may_answer

_NOT_AVAILABLE = {"NA", "NaN", "nan", "<NA>", "#N/A"}  # of R, pandas and Excel
_MOST_PARTS = 60


def read_cells(export: Export, known: Collection[str | None]) -> None:
    """Read such cells of a table, but for columns of texts, items and people, and say so."""
    for name in (name for name in export.columns if name not in known and may_answer(name)):
        cells = [cell for row in export.rows if not is_blank(cell := row.get(name))]
        lists = [found for cell in cells if isinstance(found := written_list(cell), list)]
        different = {part for one in lists for part in parts(one)}
        few = len(different) <= min(_MOST_PARTS, max(10, len(lists)))
        if cells and len(lists) == len(cells) and few and lists != cells:
            for row in export.rows:
                row[name] = written_list(row.get(name))
            export.notes.append(f"{name}: lists that are written as texts are read as lists.")
            if all(len(parts(one)) == 1 for one in lists):
                doubt = "Each list holds one answer. May an annotator give several?"
                export.question(name).doubts.append(doubt)
        if not looks_like_text(export, name):
            _blank(export, name)


def _blank(export: Export, name: str) -> None:
    found = Counter(cell for row in export.rows if isinstance(cell := row.get(name), str)
                    and cell.strip() in _NOT_AVAILABLE)  # fmt: skip
    for cell in found.keys() - export.question(name).options.keys():
        export.left_out[f"{cell} in {name}, read as no answer"] += found[cell]
        export.question(name).doubts.append(f"{cell} was read as no answer. Was it one?")
        for row in export.rows:
            row[name] = None if row.get(name) == cell else row.get(name)

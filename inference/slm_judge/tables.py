"""Tables in and out: CSV, JSON Lines and Parquet files (also compressed), and Hub datasets."""

import csv
import os
from pathlib import Path
from typing import Any

import fsspec
from datasets import Dataset, DatasetDict, Features, Value, load_dataset
from datasets import logging as datasets_logging
from datasets.exceptions import DatasetNotFoundError
from datasets.utils import disable_progress_bars

from .errors import DataError
from .files import atomic_file
from .hub import hub_message, missing_message

_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst"}


def file_format(path: Path) -> str | None:
    """csv, json (JSON Lines) or parquet, by suffix; None for anything else."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def read_table(location: str) -> Dataset:
    """Read a table.

    Args:
        location: a file, or a Hub dataset `user/name`, `user/name@revision`, with `#split` behind
            it where it is not `train`.

    Returns:
        The rows. All columns of a CSV are text: "NA" and "007" stay as they are.

    Raises:
        DataError: there is no such table, or it cannot be read.
    """
    path = Path(location)
    if path.exists():
        return _read_file(path)
    if file_format(path) or location.count("/") != 1:
        raise DataError(f"There is no file {location}.")
    return _read_hub(location)


def _read_file(path: Path) -> Dataset:
    kind = file_format(path)
    if kind is None:
        raise DataError(
            f"{path} is neither .csv, .tsv, .jsonl nor .parquet (each also with .gz, .bz2, .xz, "
            ".zst); convert it first."
        )
    disable_progress_bars()
    datasets_logging.set_verbosity_error()
    options: dict[str, Any] = {}
    if kind == "csv":
        separator = "\t" if ".tsv" in path.suffixes else ","
        header = _csv_header(path, separator)
        options = {
            "sep": separator,
            "keep_default_na": False,
            "na_filter": False,
            "features": Features({name: Value("string") for name in header}),
        }
    try:
        return load_dataset(kind, data_files=str(path), split="train", **options)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # datasets and pyarrow wrap what they meet in many types
        reason = _innermost(error)
        raise DataError(f"{path} cannot be read as {kind}: {reason}") from error


def _csv_header(path: Path, separator: str) -> list[str]:
    """The column names of a CSV whose rows all have as many fields (pandas would guess)."""
    csv.field_size_limit(2**31 - 1)
    try:
        with fsspec.open(
            str(path), "rt", compression="infer", encoding="utf-8-sig", newline=""
        ) as file:
            reader = csv.reader(file, delimiter=separator, strict=True)
            header = next(reader, [])
            rows = 0
            for row in reader:
                if row and len(row) != len(header):
                    raise DataError(
                        f"{path} cannot be read as csv: line {reader.line_num} has {len(row)} "
                        f"fields, the header has {len(header)}. Texts with a {separator!r} or a "
                        "line break need quotes."
                    )
                rows += bool(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as csv: {error}") from error
    repeated = sorted({name for name in header if header.count(name) > 1})
    if not header or repeated:
        found = f"repeated columns {', '.join(repeated)}" if repeated else "an empty file"
        raise DataError(f"{path}: expected a header line with distinct column names, got {found}.")
    if not rows:
        raise DataError(f"{path} has a header line and no rows.")
    return header


def _read_hub(location: str) -> Dataset:
    name, _, split = location.partition("#")
    repo, _, revision = name.partition("@")
    try:
        return load_dataset(repo, revision=revision or None, split=split or "train")
    except OSError as error:
        if isinstance(error, DatasetNotFoundError) and error.__cause__ is None:
            raise DataError(missing_message(repo)) from error
        raise DataError(hub_message(repo, revision, error)) from error
    except Exception as error:  # see _read_file
        raise DataError(f"{location} cannot be read from the Hub: {_innermost(error)}") from error


def _innermost(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return f"{type(error).__name__}: {error}".strip()


def check_output(path: Path) -> None:
    """Refuse an output that cannot be written, before any work.

    Raises:
        DataError: wrong suffix, or the folder is not writable.
    """
    if file_format(path) is None:
        raise DataError(f"{path}: the output is .csv, .tsv, .jsonl or .parquet.")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder} is not writable.")


def write_table(table: Dataset | DatasetDict, path: Path) -> None:
    """Write a table, atomically, in the format of the suffix (compressed where it says so)."""
    disable_progress_bars()
    kind = file_format(path)
    with (
        atomic_file(path) as temporary,
        fsspec.open(str(temporary), "wb", compression="infer") as file,
    ):
        if kind == "csv":
            table.to_csv(file, index=False, sep="\t" if ".tsv" in path.suffixes else ",")
        elif kind == "json":
            table.to_json(file, force_ascii=False)
        else:
            table.to_parquet(file)

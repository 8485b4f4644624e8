"""Writing files so that a crash leaves the old version or the new one, never half of one.

What is put in its place is on the disk by then, so that this also holds where the power fails.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import DataError, JudgeError

TEMPORARY = ".slm-judge-"
"""What the names of half-written files start with."""
_OLD = "-old"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffixes stay last, since writers choose a format by them; a whole name may be too long.
    suffix = f"-{path.name[-40:]}"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _to_disk(temporary)
        temporary.replace(path)
        _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, put in its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path)))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for part in (*temporary.rglob("*"), temporary):
            _to_disk(part)
        old = temporary.with_name(f"{temporary.name}{_OLD}")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        _to_disk(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(path: Path) -> None:
    """Remove what killed processes left half-written beside `path`; call it with `path` locked.

    A folder that was moved aside for its successor, which then did not come, is put back.
    """
    for left in path.parent.glob(f"{_prefix(path)}*"):
        if left.name.endswith(_OLD) and left.is_dir() and not path.exists():
            left.rename(path)
        else:
            remove(left)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """What is made at `path` is made by no other process at the same time.

    Raises:
        JudgeError: another process is making it.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file, timeout=0)
    while not file.exists() or not lock.is_locked:  # its last holder may have removed it just now
        lock.release()
        try:
            lock.acquire()
        except Timeout as error:
            raise JudgeError(
                f"Another process is working on {path}. Wait until it is done, or name another "
                "place."
            ) from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # what was made in them stays
            for folder in made:
                folder.rmdir()


def _prefix(path: Path) -> str:
    """What the names of temporary files for `path` start with."""
    return f"{TEMPORARY}{zlib.crc32(os.fsencode(path.name)):08x}-"


def _to_disk(path: Path) -> None:
    with suppress(PermissionError):  # of folders on Windows
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write strict JSON, atomically; see `finite`."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, f"{text}\n")


def read_back(path: Path, remedy: str) -> dict[str, Any]:
    """An object that `write_json` wrote.

    Raises:
        JudgeError: it is damaged; `remedy` says how to get another.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise JudgeError(f"{path} is damaged; {remedy}: {error}") from error


def local_path(place: object) -> Path:
    """The absolute path of a file, also where it is written as an address (`file://`) or with ~."""
    return Path(re.sub(r"^(file|local):(//)?", "", str(place))).expanduser().resolve()


def check_places(
    read: Mapping[str, object], written: Mapping[str, Path | str | None], overwrite: bool
) -> None:
    """Refuse to write over what is read, over one output with another, or over a finished one.

    Args:
        read: name in words -> file or address.
        written: name in words -> file, if it is asked for.
        overwrite: whether files that are there may be replaced.

    Raises:
        DataError: says which.
    """
    seen: dict[Path, str] = {}
    for what, place in {**read, **written}.items():
        if place is None:
            continue
        path = local_path(place)
        if (first := seen.setdefault(path, what)) != what:
            raise DataError(f"{place} is {first} and {what}; name another file.")
        if what in written and path.exists() and not overwrite:
            raise DataError(f"{place} exists. Name another file, or replace it with --overwrite.")


def finite(value: Any) -> Any:
    """`value` as JSON can hold it: None in place of a number that is not defined."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def content_hash(path: Path, files: Iterable[Path] | None = None) -> str:
    """SHA-256 over the names and contents of a file, or of a folder's files.

    Args:
        path: the file or the folder.
        files: those of its files that count; by default all.
    """
    digest = hashlib.sha256()
    if files is None:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if file.is_file() and file.name != "README.md":  # the card, written by push
            digest.update(str(file.relative_to(path.parent)).encode())
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Virtual environments that hold what slm-judge needs and nothing else, slm-judge itself least of all."""

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

LIMIT = 120


def bare(folder: Path, *extras: str) -> Path:
    """An environment with what slm-judge with these extras says it needs; its Python."""
    from slm_judge.export.space import pinned

    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=LIMIT
    )
    borrow((line.split("==")[0] for line in pinned(*extras)), folder)
    return folder / "bin/python"


def borrow(names: Iterable[str], environment: Path) -> None:
    """Put these distributions, and no others, into an environment: as links to those of this one."""
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in names:
        found = distribution(name)
        for top in {
            file.parts[0]
            for file in found.files or ()
            if file.parts[0] not in ("..", "__pycache__")
        }:
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))

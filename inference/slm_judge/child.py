"""Work on the files of strangers in a process of its own, which may hang, grow or crash."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from .errors import JudgeError, ModelError

_REFUSED = 2
_TELLING = re.compile(r"GGML_ASSERT\(.*|what\(\): .*")


class ChildDied(Exception):  # noqa: N818
    """How a child ended, in words: too late, by a signal, or by an error that is not ours."""


def ask_child(module: str, request: Mapping[str, Any], seconds: float) -> str:
    """What `python -m slm_judge.<module>`, which ends in `answer`, says to a request.

    Raises:
        ModelError: what it raised.
        ChildDied: it ended in any other way, or not within `seconds`.
    """
    # `-P`: the working folder may be the stranger's.
    command = [sys.executable, "-P", "-m", f"slm_judge.{module}"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "GGML_NO_BACKTRACE": "1",  # it would start a debugger
    }
    try:
        done = subprocess.run(  # noqa: S603
            command,
            input=json.dumps(dict(request), default=str).encode(),
            capture_output=True,
            timeout=seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildDied(f"it has not ended after {seconds:.0f} s") from None
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode == 0:
        return said
    if done.returncode == _REFUSED:
        raise ModelError(said)
    raise ChildDied(_last_words(done.returncode, done.stderr.decode("utf-8", "replace")))


def _last_words(code: int, said: str) -> str:
    how = signal.strsignal(-code) or str(code) if code < 0 else f"exit code {code}"
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["none"]
    told = next(filter(None, map(_TELLING.search, lines)), None)
    last = "".join(filter(str.isprintable, told[0] if told else lines[-1]))
    return f"{how}; its last words: {last[-200:]}"


def answer(work: Callable[..., str], gib: float | None = None) -> None:
    """The child's side of `ask_child`: `work` takes the request as keyword arguments.

    It may take so many GiB of memory, by default the machine's, where the system can bound that.
    """
    with suppress(ImportError):  # there is none on Windows
        import resource

        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        most, hard = (
            int(gib * 2**30) if gib else machine,
            resource.getrlimit(resource.RLIMIT_DATA)[1],
        )
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard < 0 else min(most, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        said = work(**json.load(sys.stdin))
    except JudgeError as error:
        sys.stdout.buffer.write(str(error).encode("utf-8", "replace"))
        sys.exit(_REFUSED)
    sys.stdout.buffer.write(said.encode("utf-8", "replace"))

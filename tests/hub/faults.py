"""What can go wrong between the client and the Hub: every request, every fault."""

import re
from collections.abc import Callable, Iterator
from itertools import count

from tests.hub.server import HubError, OtherAnswerError, SilenceError

Hook = Callable[[str, str], str | None]
"""For `LoopbackHub.fail`."""

PUSH = {
    "whoami": "GET /api/whoami-v2",
    "create": "POST /api/repos/create",
    "branch": "POST .*/branch/.*",
    "card": "POST /api/validate-yaml",
    "listing": "GET .*/tree/.*",
    "preupload": "POST .*/preupload/.*",
    "batch": "POST .*/objects/batch",
    "upload": "PUT /lfs/.*",
    "verify": "POST .*/verify",
    "commit": "POST .*/commit/.*",
}
PULL = {
    "info": "GET /api/models/[^/]+/[^/]+(/revision/.*)?",
    "tree": "GET .*/tree/.*",
    "head": "HEAD .*/resolve/.*",
    "file": "GET .*/resolve/.*",
}
DATA = {
    "info": "GET /api/datasets/[^/]+/[^/]+(/revision/.*)?",
    "tree": "GET /api/datasets/.*/tree/.*",
    "head": "HEAD /datasets/.*/resolve/.*",
    "file": "GET /datasets/.*/resolve/.*parquet",
}
JOBS = {
    "list": "GET /api/jobs/[^/]+",
    "start": "POST /api/jobs/[^/]+",
    "logs": "GET /api/jobs/.*/logs",
    "status": "GET /api/jobs/[^/]+/[^/]+",
}
HANG = 2.0
"""Seconds of silence; longer than the time-out of whoever tests with it."""


def _refuse(status: int, **headers: str) -> Callable[[], str | None]:
    def refuse() -> str | None:
        raise HubError(status, "", f"{status}, said to Bearer hf_other", **headers)

    return refuse


def _instead(content: bytes, content_type: str) -> Callable[[], str | None]:
    def instead() -> str | None:
        raise OtherAnswerError(content, content_type)

    return instead


def _silent(seconds: float) -> Callable[[], str | None]:
    def silent() -> str | None:
        raise SilenceError(seconds)

    return silent


FAULTS: dict[str, Callable[[], str | None]] = {
    **{str(status): _refuse(status) for status in (400, 401, 402, 403, 404, 409, 500, 502, 503)},
    "429": _refuse(429, Retry_After="7"),
    "429 for a day": _refuse(429, Retry_After="86400"),
    "cut before": _silent(0),
    "hang": _silent(HANG),
    "cut in the middle": lambda: "half",
    "done, then cut": lambda: "none",
    "empty": _instead(b"", "application/json"),
    "page": _instead(b"<html>down for maintenance</html>", "text/html"),
    "list": _instead(b"[]", "application/json"),
    "object": _instead(b"{}", "application/json"),
    "number": _instead(b"7", "application/json"),
    "bytes": _instead(bytes(range(128, 256)), "application/octet-stream"),
}
PASSING = (
    "429",
    "429 for a day",
    "500",
    "502",
    "503",
    "cut before",
    "hang",
    "cut in the middle",
    "done, then cut",
)
"""Faults after which a request is made again."""


def faults(requests: dict[str, str]) -> Iterator[tuple[str, Hook]]:
    """(name, hook) of each fault of each request: for good, and where it may pass also once.

    Args:
        requests: `PUSH` or `PULL`, or a part: name -> pattern of "METHOD path".
    """
    for request, pattern in requests.items():
        for fault, happen in FAULTS.items():
            if fault != "hang":  # for good, it takes long; the next one shows the same
                yield f"{request}, {fault}", _hook(pattern, happen, times=None)
            if fault in PASSING:
                yield f"{request}, {fault}, once", _hook(pattern, happen, times=1)


def _hook(pattern: str, happen: Callable[[], str | None], times: int | None) -> Hook:
    calls = count(1)

    def hook(method: str, path: str) -> str | None:
        if not re.fullmatch(pattern, f"{method} {path}"):
            return None
        return happen() if times is None or next(calls) <= times else None

    return hook

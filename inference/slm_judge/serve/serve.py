"""`slm-judge serve`: a judge for many clients, over HTTP."""

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from slm_judge.errors import JudgeError, require_extra
from slm_judge.judge.judge import Judge, LoadOptions
from slm_judge.screen import say
from slm_judge.web import address_of, check_host, hosts_of, is_loopback, listen, run

PORT = 8080  # of llama.cpp's server too
KEY = "SLM_JUDGE_API_KEY"
_SHORTEST = 8  # of a key
_GRACE = 30  # seconds for what is being answered when the server ends
_ON_GPU = 512  # rows at once, so that they fill a pass


@dataclass(frozen=True)
class Settings:
    """What is served, and to whom."""

    model: str
    """Hub repository, folder or `.gguf` file."""
    revision: str | None = None
    options: LoadOptions = field(default_factory=LoadOptions)
    host: str = "127.0.0.1"
    port: int | None = None
    key: str | None = None
    """That clients send; needed where other machines are let in."""
    most_rows: int | None = None
    """Of a request."""
    most_bytes: int | None = None
    """Of a request's body."""
    at_once: int | None = None
    """Rows that are computed together; by default 32, on a CUDA GPU 512."""


def serve(settings: Settings, console: Console | None = None) -> None:
    """Serve a judge until it is interrupted; requests that wait then are answered first.

    Raises:
        JudgeError: the port is taken, a key is missing, or the judge cannot be loaded; the first
            two are said before any model is loaded.
        MissingExtraError: the extra `serve` is not installed.
    """
    console = console or Console()
    require_extra("serve")
    from .server import Limits, application

    check(settings)
    listening = listen(settings.host, settings.port, PORT)
    judge = Judge.from_pretrained(settings.model, settings.revision, **settings.options)
    try:
        usual, on_gpu = Limits(), _on_gpu(judge)
        limits = Limits(
            settings.most_bytes or usual.body,
            settings.most_rows or usual.rows,
            at_once=settings.at_once or (_ON_GPU if on_gpu else usual.at_once),
        )
        name = settings.model if not Path(settings.model).exists() else judge.backend.path.name
        served = application(judge, name, hosts_of(settings.host), settings.key, limits)
    except BaseException:
        judge.close()
        raise
    address = address_of(settings.host, listening)
    say(console, [f"{name} answers POST {address}/v1/systemone (Ctrl-C ends it)"], "")
    run(served, listening, _GRACE)


def check(settings: Settings) -> None:
    """Refuse what lets strangers in.

    Raises:
        JudgeError: says what is missing.
    """
    check_host(settings.host)
    if not is_loopback(settings.host) and not settings.key:
        raise JudgeError(
            f"--host {settings.host} lets other machines in: set a key in the variable {KEY}, "
            "which clients send (Authorization: Bearer KEY). It and the texts travel as they are, "
            "so put a server with TLS before it."
        )
    if settings.key is not None and len(settings.key) < _SHORTEST:
        raise JudgeError(f"The key in {KEY} needs at least {_SHORTEST} characters.")


def _on_gpu(judge: Judge) -> bool:
    model = getattr(judge.backend, "model", None)
    return getattr(getattr(model, "device", None), "type", "") == "cuda"

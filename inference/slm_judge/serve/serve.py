"""`slm-judge serve`: a judge for many clients, over HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from slm_judge.errors import JudgeError, require_extra
from slm_judge.judge.judge import Judge, LoadOptions
from slm_judge.screen import say
from slm_judge.web import address_of, check_host, check_secret, hosts_of, listen, run

from .batches import Limits

PORT = 8080  # of llama.cpp's server too
KEY = "SLM_JUDGE_API_KEY"
_GRACE = 30  # seconds for what is being answered when the server ends
_MOST = 1024  # clients that are listened to at once
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
    names: Sequence[str] = ()
    """Further hosts under which it may be asked for, as by a proxy before it."""
    limits: Limits = field(default_factory=Limits)
    at_once: int | None = None
    """Rows that are computed together; by default those of `limits`, on a CUDA GPU 512."""


def serve(settings: Settings, console: Console | None = None) -> None:
    """Serve a judge until it is interrupted; requests that wait then are answered first.

    Raises:
        JudgeError: the port is taken, a key is missing, or the judge cannot be loaded; the first
            two are said before any model is loaded.
        MissingExtraError: the extra `serve` is not installed.
    """
    console = console or Console()
    require_extra("serve")
    from .server import application

    check(settings)
    listening = listen(settings.host, settings.port, PORT)
    judge = Judge.from_pretrained(settings.model, settings.revision, **settings.options)
    try:
        usual = _ON_GPU if _on_gpu(judge) else settings.limits.at_once
        limits = replace(settings.limits, at_once=settings.at_once or usual)
        hosts = hosts_of(settings.host, *settings.names)
        name = settings.model if not Path(settings.model).exists() else judge.backend.path.name
        served = application(judge, name, hosts, settings.key, limits)
    except BaseException:
        judge.close()
        raise
    address = address_of(settings.host, listening)
    say(console, [f"{name} answers POST {address}/v1/systemone (Ctrl-C ends it)"], "")
    run(served, listening, _GRACE, _MOST)


def check(settings: Settings) -> None:
    """Refuse what lets strangers in.

    Raises:
        JudgeError: says what is missing.
    """
    check_host(settings.host)
    told, key = ", which clients send (Authorization: Bearer KEY)", settings.key or ""
    check_secret(settings.host, settings.key, f"key in the variable {KEY}", told)
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        raise JudgeError(f"The key in {KEY} is of ASCII characters, without spaces at its ends.")


def _on_gpu(judge: Judge) -> bool:
    model = getattr(judge.backend, "model", None)
    return getattr(getattr(model, "device", None), "type", "") == "cuda"

"""What servers of this package have in common: the port, the host, the body of a request."""

import ipaddress
import signal
import socket
from typing import Any

from slm_judge.data.text import read_json
from slm_judge.errors import DataError, JudgeError

_SHORTEST = 8  # of a secret


class BodyError(DataError):
    """The body of a request is not what was expected."""

    def __init__(self, message: str, status: int) -> None:
        """With the HTTP status that says so."""
        super().__init__(message)
        self.status = status


def is_loopback(host: str) -> bool:
    """Whether no other machine can reach what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(host: str) -> None:
    """Refuse what `listen` does not know.

    Raises:
        JudgeError: it is an IPv6 address.
    """
    if ":" in host:
        raise JudgeError(f"--host is a name or an IPv4 address, got {host}.")


def check_secret(host: str, secret: str | None, what: str, told: str = "") -> None:
    """Refuse to let other machines in without a secret, or with one that is soon guessed.

    Args:
        host: where the server listens.
        secret: None where there is none.
        what: it is, and in which variable, e.g. "key in the variable KEY".
        told: what else is said about it.

    Raises:
        JudgeError: says what is missing.
    """
    if not is_loopback(host) and not secret:
        raise JudgeError(
            f"--host {host} lets other machines in: set a {what}{told}. It and the texts travel as "
            "they are, so put a server with TLS before it."
        )
    if secret is not None and len(secret) < _SHORTEST:
        raise JudgeError(f"The {what} needs at least {_SHORTEST} characters.")


def hosts_of(host: str, *further: str) -> list[str]:
    """Names under which a server may be asked for.

    Other names are those of strangers' pages whose address was made to lead here.
    """
    own = {"127.0.0.1", "localhost", host, *further}
    return sorted(own) if is_loopback(host) else [*further] or ["*"]


def listen(host: str, port: int | None, usual: int) -> socket.socket:
    """The port that was asked for; where nobody asked, the usual one or any that is free.

    Raises:
        JudgeError: it is taken, or not ours to take.
    """
    ports, problem = [usual, 0] if port is None else [port], None
    for one in ports:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, one))
            listening.listen(1024)
            return listening
        except OSError as error:
            listening.close()
            problem = error.strerror
    raise JudgeError(f"Cannot listen on {host}, port {ports[-1]}: {problem}.")


def address_of(host: str, listening: socket.socket) -> str:
    """Where a browser on another machine, or on this one, finds it."""
    name = socket.gethostname() if host == "0.0.0.0" else host  # noqa: S104
    return f"http://{name}:{listening.getsockname()[1]}"


def run(application: Any, listening: socket.socket, grace: int, most: int | None = None) -> None:
    """Serve until it is interrupted; who is being answered then has `grace` seconds left.

    More than `most` clients at once are refused (status 503).
    """
    import uvicorn

    config = uvicorn.Config(
        application, log_level="warning", server_header=False, timeout_graceful_shutdown=grace,
        limit_concurrency=most,
    )  # fmt: skip
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # uvicorn ends in good order, then passes it on
    uvicorn.Server(config).run(sockets=[listening])


async def json_body(request: Any, largest: int) -> dict[str, Any]:
    """The JSON object of a request; pages of strangers cannot send one without being asked.

    Args:
        request: of Starlette.
        largest: bytes.

    Raises:
        BodyError: it is none, or longer.
    """
    from starlette.requests import ClientDisconnect

    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise BodyError("A request is of the type application/json.", 415)
    content = bytearray()
    try:
        async for part in request.stream():
            content += part
            if len(content) > largest:
                size = f"{largest // 2**20} MiB" if largest >= 2**20 else f"{largest} bytes"
                raise BodyError(f"This is longer than {size}. Shorten it.", 413)
    except ClientDisconnect:
        raise BodyError("Nobody waits for this.", 499) from None
    try:
        found = read_json(content.decode())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BodyError("A request is a JSON object.", 400)
    return found

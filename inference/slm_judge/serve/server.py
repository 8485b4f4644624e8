"""The server's addresses, all of them here; what they refuse, and what is counted."""

import asyncio
import secrets
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as in_prometheus_s_format
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slm_judge.backends import Logits
from slm_judge.errors import DataError, JudgeError
from slm_judge.judge.judge import Judge
from slm_judge.prompt.readers import EncodedPrompt
from slm_judge.rubric import explain
from slm_judge.version import __version__
from slm_judge.web import BodyError, json_body

from .answers import annotations, system_one
from .batches import Batches, BusyError, Limits

_LONGEST = 2000  # characters of a refusal
_GONE = 499  # of nginx: who asked went away
_LOOK = 0.5  # seconds between two looks whether they did
_OPEN = ("/health", "/metrics")  # for those who watch, who have no key
_COUNTED = ("/v1/systemone", "/v1/annotate", "/v1/questions", "/v1/models")
State = str | dict[str, Any]
Asked = TypeVar("Asked", bound="_Asked")


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, description="Ignored: this server has one judge.")


class SystemOne(_Asked):
    """One item, and questions of the rubric about it."""

    state: State = Field(description="The rubric's fields; a text where there is one field.")
    questions: dict[str, Any] | None = Field(
        None, description="Some or all of `GET /v1/questions`, as they stand there; or none."
    )
    assets: dict[str, Any] | None = Field(None, max_length=0, description="No images.")


class Rows(_Asked):
    """Many items."""

    rows: list[State] = Field(min_length=1, description="Of each, the rubric's fields.")


class _Metrics:
    """What is counted, in a registry of the server's own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "slm_judge"}
        self.requests = Counter("requests", "Answered, by status.", ["path", "status"], **own)
        self.seconds = Histogram("request_seconds", "Until the answer.", ["path"], **own)
        self.rows = Counter("rows", "Answered.", **own)
        self.tokens = Counter("tokens", "Of the rows' prompts, the rubric included.", **own)
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
        self.batch = Histogram("batch_rows", "Computed together.", buckets=sizes, **own)
        self.waiting = Gauge("rows_waiting", "Not computed yet.", **own)


def application(
    judge: Judge, name: str, hosts: list[str], key: str | None = None, limits: Limits | None = None
) -> FastAPI:
    """The server as an ASGI application, which closes the judge in the end.

    Args:
        judge: what answers.
        name: of the judge, in answers.
        hosts: names under which it may be asked for, as `web.hosts_of`.
        key: that everybody has to send, `Authorization: Bearer KEY`.
        limits: of a request.
    """
    given, metrics = limits or Limits(), _Metrics()
    batches = Batches(judge, given, metrics.batch.observe)
    metrics.waiting.set_function(lambda: batches.rows_waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield
        await to_thread.run_sync(batches.close)

    server = _Server(batches, name, given, metrics)
    app = FastAPI(
        title="slm-judge", version=__version__, lifespan=lifespan,
        docs_url=None, redoc_url=None,  # pages that load scripts from elsewhere
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
            Middleware(_Guard, metrics=metrics, key=key),
        ],
    )  # fmt: skip
    for path, answer, kind in (
        ("/v1/systemone", server.system_one, SystemOne),
        ("/v1/annotate", server.annotate, Rows),
    ):
        schema = {
            "required": True,
            "content": {"application/json": {"schema": kind.model_json_schema()}},
        }
        app.post(path, openapi_extra={"requestBody": schema})(_refusing(answer))
    app.get("/health")(server.health)
    app.get("/metrics")(server.metrics)
    app.get("/v1/questions")(server.questions)
    app.get("/v1/models")(server.models)
    for status in (404, 405):
        app.add_exception_handler(status, _no_such_address)
    return app


class _Server:
    """What the addresses answer."""

    def __init__(self, batches: Batches, name: str, limits: Limits, metrics: _Metrics) -> None:
        self._batches, self._name, self._limits, self._metrics = batches, name, limits, metrics
        self._contract = batches.judge.backend.contract
        self._questions = self._contract.rubric.questions()

    async def system_one(self, request: Request) -> Response:
        """One item; the answer is System One's."""
        asked = await self._read(request, SystemOne)
        self._batches.check_room(1)
        names = self._chosen(asked.questions)
        prompts = await to_thread.run_sync(self._batches.encode, [asked.state], "The state")
        (logits,) = await self._answers(request, prompts)
        answers = system_one(self._contract, logits)
        return JSONResponse({
            "model": self._name, "answers": {name: answers[name] for name in names},
            "usage": {"input_tokens": _tokens(prompts), "output_tokens": 0},
        })  # fmt: skip

    async def annotate(self, request: Request) -> Response:
        """Many items; the answers are `Judge.annotate`'s."""
        asked = await self._read(request, Rows)
        self._batches.check_room(len(asked.rows))
        prompts = await to_thread.run_sync(self._batches.encode, asked.rows, "Row {}")
        logits = await self._answers(request, prompts)
        found = await to_thread.run_sync(annotations, self._contract, logits)
        return JSONResponse({
            "model": self._name, "annotations": found,
            "usage": {"input_tokens": _tokens(prompts), "output_tokens": 0},
        })  # fmt: skip

    async def _read(self, request: Request, kind: type[Asked]) -> Asked:
        body, most = await json_body(request, self._limits.body), self._limits.rows
        if odd := sorted(body.keys() - kind.model_fields):  # however many there are
            known = ", ".join(kind.model_fields)
            raise BodyError(f"A request has no {', '.join(odd[:3])}; it has {known}.", 422)
        if isinstance(rows := body.get("rows"), list) and len(rows) > most:
            raise BodyError(f"{len(rows)} rows, of at most {most}. Send them in parts.", 413)
        try:
            return kind.model_validate(body, strict=True)
        except ValidationError as error:
            raise BodyError(f"The request does not fit:\n{explain(error)}", 422) from error

    def _chosen(self, questions: dict[str, Any] | None) -> list[str]:
        """The names of the questions that are asked, in the order of the request."""
        if questions is None:
            return list(self._questions)
        odd = [
            name for name, question in questions.items() if self._questions.get(name) != question
        ]
        if odd or not questions:
            shown = ", ".join(odd[:3]) or "none"
            raise DataError(
                f"The judge was trained on other questions than {shown}: send "
                "some of GET /v1/questions as they stand there, or leave `questions` out."
            )
        return list(questions)

    async def _answers(self, request: Request, prompts: Sequence[EncodedPrompt]) -> list[Logits]:
        answer = asyncio.wrap_future(self._batches.ask(prompts))
        try:
            while not (await asyncio.wait([answer], timeout=_LOOK))[0]:
                if await request.is_disconnected():
                    raise BodyError("Nobody waits for this.", _GONE)
            found = answer.result()
        finally:  # also where the server ends before it is there
            answer.cancel()
        self._metrics.rows.inc(len(prompts))
        self._metrics.tokens.inc(_tokens(prompts))
        return found

    async def health(self) -> Response:
        """That it answers."""
        works, waiting = self._batches.works, self._batches.rows_waiting
        said = {"status": "ok" if works else "error", "model": self._name, "rows_waiting": waiting}
        return JSONResponse(said, 200 if works else 503)

    async def metrics(self) -> Response:
        """What is counted, as Prometheus reads it."""
        found = in_prometheus_s_format(self._metrics.registry)
        return Response(found, media_type=CONTENT_TYPE_LATEST)

    async def questions(self) -> dict[str, Any]:
        """The rubric's questions, as a request may send them."""
        return self._questions

    async def models(self) -> dict[str, Any]:
        """The judge, as clients of other servers look for it."""
        fields = self._contract.rubric.fields
        return {"object": "list", "data": [
            {"id": self._name, "object": "model", "owned_by": "slm-judge", "fields": fields}
        ]}  # fmt: skip


def _tokens(prompts: Sequence[EncodedPrompt]) -> int:
    readings = [one for prompt in prompts for one in (prompt, prompt.exchanged) if one]
    return sum(len(one.input_ids) for one in readings)


def _refusing(
    answer: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """An address that says in words what is wrong."""

    async def endpoint(request: Request) -> Response:
        try:
            return await answer(request)
        except BodyError as error:
            return _refusal(error.status, str(error))
        except DataError as error:
            return _refusal(422, str(error))
        except BusyError as error:
            return _refusal(503, str(error), {"Retry-After": "1"})
        except JudgeError as error:
            return _refusal(500, str(error))
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return _refusal(500, "The engine failed on this; the server's log says how.")

    endpoint.__doc__ = answer.__doc__
    return endpoint


def _refusal(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    said = {"error": {"code": status, "message": message[:_LONGEST], "type": kind}}
    return JSONResponse(said, status, headers)


async def _no_such_address(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return _refusal(
        status,
        f"{request.method} {request.url.path} is not answered here: POST /v1/systemone and "
        "/v1/annotate are, and GET /v1/questions, /v1/models, /health, /metrics and /openapi.json.",
        dict(getattr(error, "headers", None) or {}),
    )


class _Guard:
    """The key; and each request is counted. No `BaseHTTPMiddleware`, which costs a tenth here."""

    def __init__(self, app: ASGIApp, metrics: _Metrics, key: str | None) -> None:
        self._app, self._metrics, self._key = app, metrics, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, path = time.perf_counter(), scope["path"]

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
                if path in _COUNTED:
                    self._metrics.requests.labels(path, message["status"]).inc()
                    self._metrics.seconds.labels(path).observe(time.perf_counter() - started)
            await send(message)

        answer = self._app
        if self._key and path not in _OPEN and not self._knows(Headers(scope=scope)):
            needed = {"WWW-Authenticate": "Bearer"}
            answer = _refusal(401, "A key is needed: Authorization: Bearer KEY.", needed)
        await answer(scope, receive, noted)

    def _knows(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        known = secrets.compare_digest(given.strip().encode(), str(self._key).encode())
        return kind.lower() == "bearer" and known

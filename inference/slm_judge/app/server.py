"""The page and what it asks for: a handful of addresses, all of them here.

Nothing of the machine is served but what is written here: four files of this folder, and answers
made of the judge, the items and the store. Texts go out as JSON and the page shows them as text.
"""

import base64
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from slm_judge.data.text import is_nobody, read_name
from slm_judge.errors import DataError, JudgeError
from slm_judge.rubric import Dimension, Rubric
from slm_judge.text import to_utf8
from slm_judge.web import json_body

from .judging import Judges
from .standing import disagreements, export, report, standing
from .store import Store

LARGEST = 8 * 2**20  # bytes of a request: a text of MOST_CHARACTERS fits
LONGEST_COMMENT = 2000  # characters, as page.js has it
_FILES = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"),
          "/page.js": ("page.js", "text/javascript"),
          "/annotate.js": ("annotate.js", "text/javascript")}  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'self' https://huggingface.co",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_OF_REPORT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LONGEST_NAME = 80
_EXAMPLES = 5


@dataclass
class Page:
    """What is served."""

    rubric: Rubric
    judges: Judges
    store: Store | None = None
    """None where there are no items: the page then tries judges out, and no more."""
    review_below: float | None = None
    notes: list[str] = field(default_factory=list)
    """Lines for people, above the page."""


def application(page: Page, hosts: list[str], password: str | None = None) -> Starlette:
    """The page as an ASGI application.

    Args:
        page: what is served.
        hosts: names under which it may be asked for; other names are those of strangers' pages
            whose address was made to lead here.
        password: that everybody has to give, under any user name.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        yield
        await to_thread.run_sync(page.judges.close)

    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
        Middleware(_Guard, password=password),
    ]
    routes = [Route(path, _file) for path in _FILES]
    routes += [Route("/api/start", _call(page, _start)), _post("try", page, _try)]
    if page.store:
        routes += [
            Route("/export.csv", _call(page, _export)),
            Route("/report", _call(page, _report)),
            *(_post(*one) for one in (
                ("next", page, _next), ("answer", page, _answer), ("undo", page, _undo),
                ("settling", page, _settling), ("settle", page, _settle),
                ("standing", page, _standing))),
        ]  # fmt: skip
    return Starlette(routes=routes, middleware=middleware, lifespan=lifespan)


class _Guard(BaseHTTPMiddleware):
    """The password, the headers, and what a request may be."""

    def __init__(self, app: Any, password: str | None) -> None:
        super().__init__(app)
        self.password = password

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        if self.password and not _knows(request.headers.get("authorization", ""), self.password):
            ask = {"WWW-Authenticate": 'Basic realm="slm-judge", charset="UTF-8"'}
            return Response("A password is needed.", 401, ask | _HEADERS)
        response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response


def _knows(header: str, password: str) -> bool:
    try:
        given = base64.b64decode(header.removeprefix("Basic ")).partition(b":")[2]
    except ValueError:
        return False
    return secrets.compare_digest(given, password.encode())


Answer = Callable[[Page, dict[str, Any]], Any]
Endpoint = Callable[[Request], Awaitable[Response]]


def _call(page: Page, answer: Answer) -> Endpoint:
    """An address whose answer is made in a thread; what is wrong is said in words."""

    async def endpoint(request: Request) -> Response:
        try:
            asked = (
                await json_body(request, LARGEST)
                if request.method == "POST"
                else dict(request.query_params)
            )
            found = await to_thread.run_sync(answer, page, asked)
        except JudgeError as error:
            if request.method == "GET":  # a link that was followed
                return Response(str(error), 422, media_type="text/plain; charset=utf-8")
            return JSONResponse({"error": str(error)}, 422)
        return found if isinstance(found, Response) else JSONResponse(found)

    return endpoint


def _post(name: str, page: Page, answer: Answer) -> Route:
    return Route(f"/api/{name}", _call(page, answer), methods=["POST"])


def _file(request: Request) -> Response:
    name, kind = _FILES[request.url.path]
    return Response((Path(__file__).parent / name).read_bytes(), media_type=kind)


def _start(page: Page, asked: Mapping[str, Any]) -> Any:
    rubric, store = page.rubric, page.store
    dimensions = [
        {"name": d.name, "type": d.type, "instructions": d.instructions,
         "ask_if": {name: _keys(rubric.dimension(name), of) for name, of in d.ask_if.items()},
         "options": [{"key": d.key(i), "description": option.description}
                     for i, option in enumerate(d.options)]}
        for d in rubric.dimensions
    ]  # fmt: skip
    return {
        "rubric": {"name": rubric.name, "instructions": rubric.instructions,
                   "fields": rubric.fields, "dimensions": dimensions},
        "judges": [named.name for named in page.judges.named],
        "review_below": page.review_below,
        "examples": _examples(page),
        "notes": [*page.notes, *filter(None, [page.judges.problem])],
        "task": vars(store.task) if store else None,
        "version": store.mark if store else None,
    }  # fmt: skip


def _keys(dimension: Dimension, values: Sequence[object]) -> list[str]:
    return [dimension.key(k) for k in map(dimension.index, values) if k is not None]


def _examples(page: Page) -> list[dict[str, str]]:
    """What the rubric says about its options; no item, which people are yet to annotate."""
    texts = [o.description for d in page.rubric.dimensions for o in d.options if o.description]
    return [dict.fromkeys(page.rubric.fields, text) for text in texts[:_EXAMPLES]]


def _try(page: Page, asked: Mapping[str, Any]) -> Any:
    state = asked.get("state")
    if not isinstance(state, dict) or {*state} != {*page.rubric.fields}:
        raise DataError(f"The judge reads the fields {', '.join(page.rubric.fields)}.")
    if page.store and (reader := read_name(_text(asked, "who"))):
        page.store.reveal(page.store.items_of(state), reader)
    return {"answers": page.judges.try_out(state)}


def _text(asked: Mapping[str, Any], name: str) -> str:
    value = asked.get(name, "")
    if not isinstance(value, str):
        raise DataError(f"{name} is a text.")
    return to_utf8(value)


def _name(asked: Mapping[str, Any], key: str = "annotator") -> str:
    name = read_name(_text(asked, key))
    if is_nobody(name) or len(name) > _LONGEST_NAME:
        raise DataError(f"Give your name, of 1 to {_LONGEST_NAME} characters.")
    return name


def _store(page: Page, asked: Mapping[str, Any] | None = None) -> Store:
    """The store; of what a page sends, only where that page asks what is asked now."""
    assert page.store is not None  # its routes are not there without it
    if asked is not None and asked.get("version") != page.store.mark:
        raise DataError("The questions, or what is shown of the judge, are not those of this page "
                        "any more. Load the page again.")  # fmt: skip
    return page.store


def _next(page: Page, asked: Mapping[str, Any]) -> Any:
    store, annotator = _store(page, asked), _name(asked)
    return _shown(store, annotator, store.next_item(annotator))


def _shown(store: Store, annotator: str, item: str | None) -> Any:
    """An item as its annotator may see it."""
    found = {"item": None, "progress": store.progress(annotator)}
    if item is None:
        return found
    own = store.own(item, annotator)
    judge = _judge(store, item, own)
    return found | {
        "item": {"id": item, "state": store.state(item), "answers": own, "judge": judge}
    }


def _judge(store: Store, item: str, own: Mapping[str, str | None]) -> Any:
    """What the judge said, where the annotator may know it; else it does not leave this machine."""
    shown = store.task.shown
    if shown == "never" or (shown == "after" and store.open(own)):
        return None
    query = "SELECT dimension, option, confidence, problem FROM verdicts WHERE item = ?"
    return {row["dimension"]: dict(row) for row in store.rows(query, item)}


def _option(asked: Mapping[str, Any]) -> str | None:
    return None if asked.get("option") is None else _text(asked, "option")


def _answer(page: Page, asked: Mapping[str, Any]) -> Any:
    store, annotator, item = _store(page, asked), _name(asked), _text(asked, "item")
    seconds = asked.get("seconds")
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
        raise DataError("seconds is how long the answer took.")
    store.answer(item, annotator, _text(asked, "dimension"), _option(asked), float(seconds))
    return {"judge": _judge(store, item, store.own(item, annotator))}


def _undo(page: Page, asked: Mapping[str, Any]) -> Any:
    store, annotator = _store(page, asked), _name(asked)
    if (item := store.undo(annotator)) is None:
        raise DataError("There is no answer to take back.")
    return _shown(store, annotator, item)


def _settling(page: Page, asked: Mapping[str, Any]) -> Any:
    store, most = _store(page, asked), asked.get("most")
    found = disagreements(
        store, _text(asked, "dimension"), _text(asked, "annotator"),
        asked.get("settled") is True, most if isinstance(most, int) else 20,
    )  # fmt: skip
    if reader := read_name(_text(asked, "who")):
        store.reveal({row["item"] for row in found["items"] if row["judge"]}, reader)
    return found | {"annotators": store.annotators()}


def _settle(page: Page, asked: Mapping[str, Any]) -> Any:
    if len(comment := _text(asked, "comment")) > LONGEST_COMMENT:
        raise DataError(f"A comment has at most {LONGEST_COMMENT} characters.")
    _store(page, asked).settle(
        _text(asked, "item"), _text(asked, "dimension"), _option(asked), comment,
        _name(asked, "who"),
    )  # fmt: skip
    return {}


def _standing(page: Page, asked: Mapping[str, Any]) -> Any:
    width = asked.get("width")  # perhaps a number that no float holds
    return standing(_store(page, asked), width if isinstance(width, int | float) else 0.0)


def _export(page: Page, asked: Mapping[str, Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "annotations.csv"
        export(_store(page), file, asked.get("settled") == "1")
        content = file.read_bytes()
    download = {"Content-Disposition": 'attachment; filename="annotations.csv"'}
    return Response(content, media_type="text/csv; charset=utf-8", headers=download)


def _report(page: Page, asked: Mapping[str, Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        content = report(_store(page), Path(folder)).read_text(encoding="utf-8")
    return HTMLResponse(content, headers={"Content-Security-Policy": _OF_REPORT})

"""A model behind an OpenAI-compatible address (OpenAI, vLLM, Ollama, llama-server), asked a rubric.

One request an item, with all dimensions. Each answer is kept in a file as it comes, so that the
same command goes on where it stopped, and asks nothing twice but what got no answer.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from rich.console import Console

from slm_judge.data.item import Item
from slm_judge.errors import JudgeError
from slm_judge.files import locked
from slm_judge.progress import progress_bar
from slm_judge.rubric import Rubric
from slm_judge.screen import say

KEY = "OPENAI_API_KEY"
"""The environment variable with the key, which goes to the server and nowhere else."""
TRIES, FIRST_WAIT, LONGEST_WAIT = 6, 1.0, 120.0
"""Of a request, and the seconds before the second one and at most before any."""
PATIENCE = 600.0
"""Seconds without an answer after which a server that limits its requests is given up."""
_SLOW_TRIES = 2  # of a request that is not answered in time
_LONGEST_TIMEOUT = 86400.0
_REFUSALS, _FAILURES = 5, 2  # after which a server that never answered is given up
_TOO_LARGE = 60  # limits of one request, among as many answers to others, and it is given up
_GROWTH = 5  # answers for each request at a time, after which one more goes at a time
_LARGEST = 16 << 20  # bytes of an answer
_AGAIN = "What was answered is kept; the same command asks only the rest."
_LOST = ("refused", "failed on")
"""What a server did with a request that it did not answer."""
_Job = tuple[str, int]  # hash of the prompt, and number of the run


Fault = Literal["limit", "server", "request"]
"""Whether too many requests came, the server is at fault, or perhaps this request is."""


class _RefusedError(Exception):
    """The server does not take this request; another one it may take."""


@dataclass(eq=False)  # an exception is itself alone
class _PassingError(Exception):
    """A fault that may pass."""

    reason: str
    told: float | None = None
    """Seconds, as `Retry-After` says."""
    tries: int = TRIES
    kind: Fault = "server"


class _FailedError(Exception):
    """The faults of a request did not pass; those of another may."""


@dataclass(frozen=True)
class Server:
    """A model behind an address, and how it is asked."""

    url: str
    """E.g. https://api.openai.com/v1 or http://127.0.0.1:8000/v1."""
    model: str
    runs: int = 1
    """How often each item is asked, for the spread."""
    temperature: float = 0.0
    concurrency: int = 4
    """Requests at a time."""
    timeout: float = 120.0
    """Seconds for an answer."""
    prices: tuple[float, float] = (0.0, 0.0)
    """Of a million prompt tokens, and of a million completion tokens."""

    def __post_init__(self) -> None:
        """Refuse, with a JudgeError, what no request can be made of."""
        address = re.fullmatch(
            r"https?://([\w-]+(?:\.[\w-]+)*\.?|\[[0-9a-f:]+\])(?::(\d{1,5}))?(/[!-~]*)?", self.url
        )
        if not address or int(address[2] or 1) > 65535 or (set("?#") & set(self.url)):
            raise JudgeError(
                "--openai is the address before /chat/completions, without a key in it, e.g. "
                f"http://127.0.0.1:8000/v1, not {re.sub('//.*@|[?#].*', '//', self.url)!r}."
            )
        if not self.model.strip():
            raise JudgeError("--openai needs --model, the model's name on the server.")
        if not 0 < self.timeout <= _LONGEST_TIMEOUT:
            raise JudgeError(f"--timeout is in seconds, at most {_LONGEST_TIMEOUT:.0f} (a day).")


def ask_server(
    server: Server, rubric: Rubric, items: Sequence[Item], folder: Path, console: Console
) -> tuple[dict[str, dict[str, list[int | None]]], list[str]]:
    """What a server says about N items; the answers are kept in `folder`.

    Returns:
        Name of the run -> dimension -> N option indices, None where the answer does not name one;
        and notes on what was spent and what could not be read.

    Raises:
        JudgeError: the server refuses, or does not answer.
    """
    path = folder / f"openai-{re.sub('[^A-Za-z0-9._-]', '-', server.model)[:80]}.jsonl"
    chats = [messages(rubric, item.state) for item in items]
    keys = [_hash(server, chat) for chat in chats]
    asked = dict(zip(keys, chats, strict=True))
    # The shortest first: it shows what the server takes, whatever it says to long ones.
    jobs = [(key, run) for key in sorted(asked, key=lambda key: len(str(asked[key])))
            for run in range(server.runs)]  # fmt: skip
    with locked(path):
        kept = _kept(path)
        if missing := [job for job in jobs if job not in kept or _lost(kept[job])]:
            answered = (asked.get(key) for (key, _), one in kept.items() if not _lost(one))
            known = next(filter(None, answered), None)
            _Asking(server, rubric, path, console, known).ask(missing, asked)
            kept = _kept(path)
    runs = {}
    for run in range(server.runs):
        name = f"{server.model} (server{f', run {run + 1}' if server.runs > 1 else ''})"
        found = [read_answer(rubric, kept[key, run]["content"]) for key in keys]
        runs[name] = {d.name: [answer[d.name] for answer in found] for d in rubric.dimensions}
    notes = [_spent(server, [kept[job] for job in jobs], len(missing))]
    for dimension in rubric.dimensions:
        if count := sum(run[dimension.name].count(None) for run in runs.values()):
            notes.append(
                f"{server.model}: {count} of {len(items) * server.runs} answers do not name "
                f"exactly one option of {dimension.name}: they count as the one that agrees least."
            )
    for kind in _LOST:
        if lost := [one[kind] for job in jobs if kind in (one := kept[job])]:
            notes.append(
                f"{server.model} {kind} {len(lost)} requests, e.g. {lost[0]}; the same "
                "command asks them again."
            )
    return runs, notes


def messages(rubric: Rubric, state: Mapping[str, str]) -> list[dict[str, str]]:
    """The chat that asks all of a rubric about one item."""
    lines = [rubric.instructions]
    for dimension in rubric.dimensions:
        lines += ["", f"{dimension.name}: {dimension.instructions}", "Options:"]
        for index, option in enumerate(dimension.options):
            meaning = f": {option.description}" if option.description else ""
            lines.append(f"- {dimension.key(index)}{meaning}")
    form = json.dumps({dimension.name: "..." for dimension in rubric.dimensions})
    rules = f"Answer with one JSON object and nothing else: {form}. Each value is exactly one of "
    lines += ["", f"{rules}the options listed for it, word for word, without what it means."]
    item = "\n".join(f"{field}: {state[field]}" for field in rubric.fields)
    system = {"role": "system", "content": "\n".join(lines)}
    return [system, {"role": "user", "content": item}]


def read_answer(rubric: Rubric, content: object) -> dict[str, int | None]:
    """The option that an answer names for each dimension; None where it is not exactly one.

    An answer is a JSON object and nothing else, but for a code fence around it.
    """
    text = content if isinstance(content, str) else ""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", text, re.DOTALL)
    raw = None
    with suppress(ValueError, RecursionError):
        raw = json.loads(fenced[1] if fenced else text, object_pairs_hook=_each_once)
    given = raw if isinstance(raw, dict) else {}
    return {d.name: d.index(given.get(d.name)) for d in rubric.dimensions}


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def _hash(server: Server, asked: Sequence[Mapping[str, str]]) -> str:
    text = json.dumps([server.model, server.temperature, asked], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _kept(path: Path) -> dict[_Job, dict[str, Any]]:
    """The answers in a file; a line that a crash cut short is none."""
    found = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, TypeError, KeyError):
            answer = json.loads(line)
            found[answer["key"], answer["run"]] = answer | {"content": answer["content"]}
    return found


def _lost(answer: Mapping[str, Any]) -> bool:
    """Whether a request got no answer, which costs nothing and may have changed since."""
    return any(kind in answer for kind in _LOST)


def _spent(server: Server, answers: Sequence[Mapping[str, Any]], now: int) -> str:
    """What the answers cost, as the server counts."""
    usages = [usage for one in answers if isinstance(usage := one.get("usage"), dict)]
    read, written = (
        sum(_number(usage.get(f"{kind}_tokens")) for usage in usages)
        for kind in ("prompt", "completion")
    )
    said = f"{server.model}: {len(answers)} answers, {now} of them asked now; {read:,} prompt and "
    said += f"{written:,} completion tokens"
    if unsaid := len(answers) - len(usages):
        said += f" (the server does not count them for {unsaid})"
    money = (read * server.prices[0] + written * server.prices[1]) / 1e6
    return f"{said}, which cost {money:.4f}." if money else f"{said}."


def _number(said: object) -> int:
    """Tokens; 0 for what is no number."""
    return int(said) if isinstance(said, int | float) and 0 <= said < 2**53 else 0


class _NoRedirects(HTTPRedirectHandler):
    """The key goes to the address that was given, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Asking:
    """Asks many requests at a time, and keeps each answer as it comes."""

    def __init__(
        self,
        server: Server,
        rubric: Rubric,
        path: Path,
        console: Console,
        known: list[dict[str, str]] | None = None,
    ) -> None:
        self._server, self._path, self._console = server, path, console
        self._known = known
        """A chat that the server answered before."""
        self._key = os.environ.get(KEY, "").strip()
        if not re.fullmatch("[!-~]*", self._key):
            raise JudgeError(f"{KEY} holds what no key has: spaces, line breaks or accents.")
        enums = {d.name: [d.key(i) for i in range(len(d.options))] for d in rubric.dimensions}
        schema = {
            "type": "object",
            "properties": {name: {"type": "string", "enum": keys} for name, keys in enums.items()},
            "required": list(enums),
            "additionalProperties": False,
        }
        form = {"name": "labels", "strict": True, "schema": schema}
        # What some servers, or some models, do not take.
        self._wishes: dict[str, Any] = {
            "response_format": {"type": "json_schema", "json_schema": form},
            "temperature": server.temperature,
        }
        self._opener = build_opener(_NoRedirects())
        self._lock, self._gate = threading.Lock(), threading.Condition()
        self._stopped, self._resume_at, self._answered_at = False, 0.0, time.monotonic()
        self._busy, self._allowed, self._streak, self._waits = 0, server.concurrency, 0, 0
        self._answers = 0
        self._lost: list[tuple[_Job, dict[str, Any]]] = []
        self._in_a_row, self._bound, self._doubted = 0, _REFUSALS, 0

    def ask(self, jobs: Sequence[_Job], asked: Mapping[str, list[dict[str, str]]]) -> None:
        """Ask all of them; the first alone, to see what the server takes.

        Args:
            jobs: what to ask.
            asked: the chat of each job's item.
        """
        pool = ThreadPoolExecutor(self._server.concurrency)
        with progress_bar("requests", console=self._console) as bar:
            task = bar.add_task(self._server.model, total=len(jobs))
            settled = self._settle(jobs, asked)
            bar.update(task, completed=settled)
            try:
                for done in as_completed(
                    [pool.submit(self._keep, j, asked[j[0]]) for j in jobs[settled:]]
                ):
                    done.result()
                    bar.advance(task)
                self._check()
            except KeyboardInterrupt:
                said = f"Waiting for {self._busy} requests on their way, which are kept."
                say(self._console, [said])
                raise
            finally:  # those on their way are paid for: they are waited for, and kept
                with self._gate:
                    self._stopped = True
                    self._gate.notify_all()
                pool.shutdown(cancel_futures=True)
        for job, lost in self._lost:
            self._write(job, lost)

    def _settle(self, jobs: Sequence[_Job], asked: Mapping[str, list[dict[str, str]]]) -> int:
        """Ask until one is answered, to see what the server takes; how many that were.

        Some may be refused before: they may be too long, or of forbidden content, but not all.
        """
        refused, failed = list[str](), list[str]()
        for number, job in enumerate(jobs, start=1):
            try:
                self._write(job, self._take(asked[job[0]]))
                self._known = asked[job[0]]
                return number
            except _RefusedError as error:
                refused.append(str(error))
                self._lost.append((job, {"content": None, "refused": str(error)}))
            except _FailedError as error:
                failed.append(str(error))
                self._lost.append((job, {"content": None, "failed on": str(error)}))
            if len(refused) == _REFUSALS or len(failed) == _FAILURES:
                break
        if failed and not self._known:
            raise JudgeError(f"{self._server.url}: {failed[-1]}. {_AGAIN}")
        if not self._known:
            raise JudgeError(f"{self._server.url} refuses what it is asked: {refused[-1]}")
        self._check()
        return number

    def _take(self, asked: list[dict[str, str]]) -> dict[str, Any]:
        """The answer, without what the server does not take where that is what it minds."""
        wishes, first = dict(self._wishes), None
        while True:
            try:
                answer = self._answer(asked, wishes)
            except _RefusedError as error:
                first = first or error
                if not wishes:
                    raise first from None
                del wishes[next((w for w in wishes if w in str(error)), next(iter(wishes)))]
                continue
            for wish in self._wishes.keys() - wishes.keys():
                said = f"{self._server.model} is asked without {wish}, which it refuses ({first})."
                say(self._console, [said])
            self._wishes = wishes
            return answer

    def _keep(self, job: _Job, asked: list[dict[str, str]]) -> None:
        try:
            self._write(job, self._answer(asked, self._wishes))
            self._known, self._in_a_row = asked, 0
            return
        except _RefusedError as error:  # e.g. too long, or of forbidden content
            kind, said = "refused", str(error)
        except _FailedError as error:
            kind, said = "failed on", str(error)
        with self._lock:
            self._lost.append((job, {"content": None, kind: said}))
            self._in_a_row += 1
            doubt = self._in_a_row >= self._bound
            if doubt:
                self._in_a_row, self._bound = 0, 2 * self._bound
        if doubt:
            self._check()

    def _check(self) -> None:
        """Whether it is the items that got no answer, or the server, which answers none any more.

        What was answered is asked again, for which a paid server is paid once more.

        Raises:
            JudgeError: it is the server.
        """
        lost = len(self._lost)
        if lost == self._doubted or not self._known:
            return
        try:
            self._answer(self._known, self._wishes)
        except (_RefusedError, _FailedError) as error:
            raise JudgeError(
                f"{self._server.url} does not answer any more: {error}. {_AGAIN}"
            ) from None
        self._doubted = lost

    def _write(self, job: _Job, answer: Mapping[str, Any]) -> None:
        line = json.dumps({"key": job[0], "run": job[1], **answer})
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")  # a crash may have cut the line before short
            file.flush()
            os.fsync(file.fileno())

    def _answer(self, asked: list[dict[str, str]], wishes: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request, asked again after faults that may pass."""
        body = {"model": self._server.model, "messages": asked, **wishes}
        tried, limited, before = 0, 0, self._answers
        while True:
            with self._turn():
                try:
                    answer = self._read(self._post(json.dumps(body).encode()))
                except _PassingError as fault:
                    tried, limited = tried + (fault.kind != "limit"), limited + 1
                    others = self._answers - before
                    if tried >= fault.tries or min(limited, others) >= _TOO_LARGE:
                        raise _FailedError(fault.reason) from None
                    wait = self._pause(fault, tried)
                else:
                    self._note_answer()
                    return answer
            self._wait(wait)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until the server is asked again, and for one of the requests at a time."""
        with self._gate:
            while not self._stopped:
                wait = self._resume_at - time.monotonic()
                if wait <= 0 and self._busy < self._allowed:
                    break
                self._gate.wait(wait if wait > 0 else None)
            if self._stopped:
                raise JudgeError(f"Stopped. {_AGAIN}")
            self._busy += 1
        try:
            yield
        finally:
            with self._gate:
                self._busy -= 1
                self._gate.notify_all()

    def _note_answer(self) -> None:
        with self._gate:
            self._answers, self._answered_at, self._waits = self._answers + 1, time.monotonic(), 0
            self._streak += 1
            if self._streak >= _GROWTH * self._allowed < _GROWTH * self._server.concurrency:
                self._allowed, self._streak = self._allowed + 1, 0

    def _pause(self, fault: _PassingError, tried: int) -> float:
        """Put off all requests for a while, or this one alone where the fault may be its own.

        Where the server limits its requests, half as many go at a time from then on.

        Returns:
            Seconds that this request waits by itself.

        Raises:
            JudgeError: the server asks to wait long.
            _FailedError: it has limited all requests for long.
        """
        with self._gate:
            now, limited = time.monotonic(), fault.kind == "limit"
            if limited and now >= self._resume_at:  # else it answers one that went before
                self._waits, self._streak = self._waits + 1, 0
                self._allowed = max(1, self._allowed // 2)
            times = min((self._waits if limited else tried) - 1, 6)
            wait: float = min(FIRST_WAIT * 2**times, 60.0)
            if fault.told is not None:
                wait = max(fault.told, FIRST_WAIT)
            asks = f", and asks to wait {wait:.0f} s" if fault.told else ""
            if wait > LONGEST_WAIT:
                raise JudgeError(f"{self._server.url}: {fault.reason}{asks}. {_AGAIN}")
            if limited and now + wait > self._answered_at + PATIENCE:
                raise _FailedError(f"{fault.reason}{asks}")
            if fault.kind == "request":
                return wait
            if wait > 3 and now >= self._resume_at:
                said = f"{self._server.url}: {fault.reason}; again in {wait:.0f} s."
                say(self._console, [said])
            self._resume_at = max(self._resume_at, now + wait)
            return 0.0

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._gate:
            while not self._stopped and (rest := until - time.monotonic()) > 0:
                self._gate.wait(rest)

    def _read(self, content: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(content)
            text = answer["choices"][0]["message"].get("content")
            return {"content": text, "usage": answer.get("usage")}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            reason = f"the answer is not that of a chat server ({self._shown(content)})"
            raise _PassingError(reason) from None

    def _post(self, body: bytes) -> bytes:
        """The body of the answer, within the time that one may take."""
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        address = f"{self._server.url.rstrip('/')}/chat/completions"
        until, parts = time.monotonic() + self._server.timeout, [b""]
        try:
            request = Request(address, body, headers)  # noqa: S310
            with self._opener.open(request, timeout=self._server.timeout) as response:
                while part := response.read1(_LARGEST):
                    parts.append(part)
                    if time.monotonic() > until or sum(map(len, parts)) > _LARGEST:
                        raise TimeoutError("it does not end")
        except HTTPError as error:
            with error, suppress(OSError, HTTPException):
                parts.append(error.read(4096))
            raise self._fault(error, self._shown(b"".join(parts))) from None
        except (OSError, HTTPException, UnicodeError) as error:
            reason = self._shown(str(error).strip("<>").encode() or type(error).__name__.encode())
            cause = error.reason if isinstance(error, URLError) else error
            tries = _SLOW_TRIES if isinstance(cause, TimeoutError) else TRIES
            raise _PassingError(f"no answer ({reason})", tries=tries) from None
        return b"".join(parts)

    def _fault(self, error: HTTPError, said: str) -> Exception:
        """What a status means."""
        status = error.code
        if status in (400, 413, 422, 501) or (status == 403 and self._known):  # of what is asked
            return _RefusedError(f"{status}: {said}")
        if status in (408, 409, 425, 429) or status >= 500:
            told = _seconds(error.headers["Retry-After"] or "")
            kind: Fault = "limit" if status == 429 else "request" if status == 500 else "server"
            return _PassingError(f"{status}: {said}", told, TRIES, kind)
        to = urlsplit(error.headers["Location"] or "").netloc or "elsewhere"
        means = {
            3: f"sends on to {to}, where nothing is sent; give the final address",
            401: f"does not take the key in {KEY}" if self._key else f"wants a key in {KEY}",
            404: f"has no model {self._server.model}, or no /chat/completions",
        }
        meant = means.get(status if status > 399 else 3, "refuses")
        return JudgeError(f"{self._server.url} {meant} ({status}: {said}). {_AGAIN}")

    def _shown(self, content: bytes) -> str:
        """What a server says, in a line, without the key, which it may repeat."""
        text = content[:4096].decode("utf-8", "replace")
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            text = str(json.loads(text)["error"]["message"])
        text = text.replace(self._key, f"({KEY})") if self._key else text
        return " ".join(text.split())[:300]


def _seconds(after: str) -> float | None:
    """What `Retry-After` says: seconds or a date."""
    with suppress(ValueError):
        if after.isdecimal():
            return float(after)
        return max(parsedate_to_datetime(after).timestamp() - time.time(), 0.0)
    return None

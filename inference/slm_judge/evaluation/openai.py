"""A model behind an OpenAI-compatible address (OpenAI, vLLM, Ollama, llama-server), asked a rubric.

One request an item, with all dimensions. Each answer is kept in a file as it comes, so that the
same command goes on where it stopped, and asks nothing twice.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
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
_REFUSALS = 5  # in a row, after which a server that never answered is given up
_LARGEST = 16 << 20  # bytes of an answer
_AGAIN = "What was answered is kept; the same command asks only the rest."
_Job = tuple[str, int]  # hash of the prompt, and number of the run


class _RefusedError(Exception):
    """The server does not take this request; another one it may take."""


class _PassingError(Exception):
    """A fault that may pass; its second argument is what `Retry-After` says."""


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
        if not re.fullmatch(
            r"https?://([\w.-]+|\[[0-9a-f:]+\])(:\d{1,5})?(/[!-~]*)?", self.url
        ) or (set("?#") & set(self.url)):
            raise JudgeError(
                "--openai is the address before /chat/completions, without a key in it, e.g. "
                f"http://127.0.0.1:8000/v1, not {re.sub('//.*@|[?#].*', '//', self.url)!r}."
            )
        if not self.model.strip():
            raise JudgeError("--openai needs --model, the model's name on the server.")


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
        if missing := [job for job in jobs if job not in kept]:
            answered = any("refused" not in one for one in kept.values())
            _Asking(server, rubric, path, console).ask(missing, asked, answered)
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
    refused = [said for job in jobs if (said := kept[job].get("refused"))]
    if refused:
        notes.append(f"{server.model} refused {len(refused)} requests, e.g. {refused[0]}.")
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


def _spent(server: Server, answers: Sequence[Mapping[str, Any]], now: int) -> str:
    """What the answers cost, as the server counts."""
    usages = [usage for one in answers if isinstance(usage := one.get("usage"), dict)]
    read, written = (
        sum(int(usage.get(f"{kind}_tokens") or 0) for usage in usages)
        for kind in ("prompt", "completion")
    )
    said = f"{server.model}: {len(answers)} answers, {now} of them asked now; {read:,} prompt and "
    said += f"{written:,} completion tokens"
    if unsaid := len(answers) - len(usages):
        said += f" (the server does not count them for {unsaid})"
    money = (read * server.prices[0] + written * server.prices[1]) / 1e6
    return f"{said}, which cost {money:.4f}." if money else f"{said}."


class _NoRedirects(HTTPRedirectHandler):
    """The key goes to the address that was given, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Asking:
    """Asks many requests at a time, and keeps each answer as it comes."""

    def __init__(self, server: Server, rubric: Rubric, path: Path, console: Console) -> None:
        self._server, self._path, self._console = server, path, console
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
        self._lock, self._stop, self._resume_at = threading.Lock(), threading.Event(), 0.0

    def ask(
        self, jobs: Sequence[_Job], asked: Mapping[str, list[dict[str, str]]], answered: bool
    ) -> None:
        """Ask all of them; the first alone, to see what the server takes.

        Args:
            jobs: what to ask.
            asked: the chat of each job's item.
            answered: whether the server took a request of this kind before.
        """
        pool = ThreadPoolExecutor(self._server.concurrency)
        with progress_bar("requests", console=self._console) as bar:
            task = bar.add_task(self._server.model, total=len(jobs))
            settled = self._settle(jobs, asked, answered)
            bar.update(task, completed=settled)
            try:
                for done in as_completed(
                    [pool.submit(self._keep, j, asked[j[0]]) for j in jobs[settled:]]
                ):
                    done.result()
                    bar.advance(task)
            finally:  # those on their way are paid for: they are waited for, and kept
                self._stop.set()
                pool.shutdown(cancel_futures=True)

    def _settle(
        self, jobs: Sequence[_Job], asked: Mapping[str, list[dict[str, str]]], answered: bool
    ) -> int:
        """Ask until one is answered, to see what the server takes; how many that were.

        Requests that are refused before are written down only then: they may be too long, or of
        forbidden content, but not all of them.
        """
        refused: list[tuple[_Job, str]] = []
        for job in jobs:
            try:
                self._write(job, self._take(asked[job[0]]))
                answered = True
                break
            except _RefusedError as error:
                refused.append((job, str(error)))
                if len(refused) == _REFUSALS:
                    break
        if not answered:
            said = refused[-1][1]
            raise JudgeError(f"{self._server.url} refuses what it is asked: {said}")
        for job, said in refused:
            self._write(job, {"content": None, "refused": said})
        return max(len(refused), jobs.index(job) + 1)

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
        except _RefusedError as error:  # e.g. too long, or of forbidden content
            self._write(job, {"content": None, "refused": str(error)})

    def _write(self, job: _Job, answer: Mapping[str, Any]) -> None:
        line = json.dumps({"key": job[0], "run": job[1], **answer})
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")  # a crash may have cut the line before short
            file.flush()
            os.fsync(file.fileno())

    def _answer(self, asked: list[dict[str, str]], wishes: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request, asked again after faults that may pass."""
        body = {"model": self._server.model, "messages": asked, **wishes}
        for attempt in range(1, TRIES + 1):
            while (wait := self._resume_at - time.monotonic()) > 0 and not self._stop.wait(wait):
                pass
            if self._stop.is_set():
                raise JudgeError(f"Stopped. {_AGAIN}")
            try:
                return self._read(self._post(json.dumps(body).encode()))
            except _PassingError as error:
                reason, told = error.args
                wait = FIRST_WAIT * 2 ** (attempt - 1) if told is None else told
                if attempt == TRIES or wait > LONGEST_WAIT:
                    asks = f", and asks to wait {told:.0f} s" if told else ""
                    raise JudgeError(f"{self._server.url}: {reason}{asks}. {_AGAIN}") from None
                if wait > 3:
                    say(self._console, [f"{self._server.url}: {reason}; again in {wait:.0f} s."])
                self._resume_at = max(self._resume_at, time.monotonic() + wait)
        raise AssertionError

    def _read(self, content: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(content)
            text = answer["choices"][0]["message"].get("content")
            return {"content": text, "usage": answer.get("usage")}
        except (ValueError, LookupError, TypeError, AttributeError):
            reason = f"the answer is not that of a chat server ({self._shown(content)})"
            raise _PassingError(reason, None) from None

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
        except (OSError, HTTPException) as error:
            reason = self._shown(str(error).strip("<>").encode() or type(error).__name__.encode())
            raise _PassingError(f"no answer ({reason})", None) from None
        return b"".join(parts)

    def _fault(self, error: HTTPError, said: str) -> Exception:
        """What a status means."""
        status = error.code
        if status in (400, 413, 422, 501):
            return _RefusedError(f"{status}: {said}")
        if status in (408, 409, 425, 429) or status >= 500:
            return _PassingError(f"{status}: {said}", _seconds(error.headers["Retry-After"] or ""))
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
        with suppress(ValueError, LookupError, TypeError):
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

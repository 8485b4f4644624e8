"""Every fault of the Hub as one sentence that says what to do; and what passes by itself."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub import get_session, get_token
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from .errors import JudgeError, ModelError, causes, system_message

TIMEOUT = 120.0
"""Seconds of silence after which a request has failed; huggingface_hub waits for ever."""
TRIES, FIRST_WAIT, LONGEST_WAIT = 4, 1.0, 60.0
"""Of a request, and the seconds between the first two and at most between any two."""
# Of whichever HTTP library huggingface_hub uses: what has no answer is a fault of the line.
_HTTP_ERROR = HfHubHTTPError.__bases__[0]
_NOT_CACHED = (LocalEntryNotFoundError, RevisionResolutionError, CachedRepoTreeNotFoundError)
_NO_ANSWER = (OfflineModeIsEnabled, ConnectionError, TimeoutError, _HTTP_ERROR)
# By choice, and after huggingface_hub itself has tried again.
_FINAL = (OfflineModeIsEnabled, LocalEntryNotFoundError)
_STATUS = "see https://status.huggingface.co"
_Result = TypeVar("_Result")


@contextmanager
def hub_errors(
    repo: str,
    revision: str | None = None,
    kind: Callable[[str], JudgeError] = ModelError,
    advice: str = "",
) -> Iterator[None]:
    """Turn every fault of the Hub in the block into a sentence, and `advice` behind it.

    Nothing but questions to the Hub about `repo` belongs in the block.

    Raises:
        JudgeError: of the kind that was asked for.
    """
    client = get_session()
    if client.timeout.read is None:
        client.timeout = TIMEOUT
    if _shorten not in client.event_hooks["response"]:
        client.event_hooks["response"].append(_shorten)
    try:
        yield
    except JudgeError:
        raise
    except Exception as error:
        raise kind(hub_message(repo, revision, error) + advice) from error


def _shorten(response: Any) -> None:
    """Where huggingface_hub repeats a request by itself, it waits as long as it is told to."""
    if (seconds := response.headers.get("Retry-After", "")).isdecimal():
        response.headers["Retry-After"] = str(min(int(seconds), int(LONGEST_WAIT)))


def repeated(call: Callable[[], _Result], told: Callable[[str], object] | None = None) -> _Result:
    """What `call` gives; it is called again, a few times, after a fault of the Hub that may pass.

    huggingface_hub itself repeats uploads and downloads of files, but not what makes a repository,
    a branch or a commit. `call` must do nothing twice that was done; `told` is called with a
    sentence before each wait.
    """
    for attempt in range(TRIES - 1):
        try:
            return call()
        except Exception as error:
            answer = _answer(error)
            busy = answer is not None and answer.response.status_code in (408, 429)
            final = any(isinstance(link, _FINAL) for link in causes(error))
            if final or not (busy or is_unreachable(error)):
                raise
            after = answer.response.headers.get("Retry-After", "") if answer else ""
            wait = float(after) if after.isdecimal() else FIRST_WAIT * 2**attempt
            if told:
                told(f"{_said(answer or error)}; trying again in {min(wait, LONGEST_WAIT):.0f} s.")
        time.sleep(min(wait, LONGEST_WAIT))
    return call()


def is_unreachable(error: BaseException) -> bool:
    """Whether the Hub does not answer, or has a fault of its own: what is cached serves as well."""
    if answer := _answer(error):
        return bool(answer.response.status_code >= 500)
    return any(isinstance(link, _NOT_CACHED + _NO_ANSWER) for link in causes(error))


def _answer(error: BaseException) -> HfHubHTTPError | None:
    """The Hub's answer that led to an error; other libraries wrap it."""
    return next((link for link in causes(error) if isinstance(link, HfHubHTTPError)), None)


def _said(error: BaseException) -> str:
    """The first line of an error, with its type or its status, and without the token."""
    kind, text = type(error).__name__, str(error).strip()
    if isinstance(error, HfHubHTTPError):
        kind, text = str(error.response.status_code), error.server_message or ""
    text = text.replace(get_token() or "(token)", "(token)")  # an answer may repeat what was sent
    return f"{kind}: {text.splitlines()[0][:200]}" if text else kind


def missing_message(repo: str) -> str:
    """What to say where there is no repository of that name."""
    return (
        f"There is no repository {repo} on the Hub, or it is private: check the name, and log in "
        "with `hf auth login` or set HF_TOKEN."
    )


def hub_message(repo: str, revision: str | None, error: BaseException) -> str:
    """What went wrong on the Hub, in one sentence that says what to do."""
    answer, chain = _answer(error), list(causes(error))
    if isinstance(answer, GatedRepoError):
        return (
            f"{repo} is gated: ask for access on its page, then log in with `hf auth login` or "
            "set HF_TOKEN."
        )
    if isinstance(answer, RepositoryNotFoundError):
        return missing_message(repo)
    if isinstance(answer, RevisionNotFoundError):
        return f"{repo} has no revision {revision or 'main'!r}."
    if isinstance(answer, RemoteEntryNotFoundError):
        return f"{repo} lacks a file that it should have: {answer.response.url.path}"
    if answer is not None:
        return _status_message(repo, answer)
    if any(isinstance(link, LocalTokenNotFoundError) for link in chain):
        return "Not logged in to the Hub: run `hf auth login` or set HF_TOKEN."
    if invalid := [link for link in chain if isinstance(link, HFValidationError)]:
        return f"{repo!r} is not the name of a Hub repository: {invalid[0]}"
    if is_unreachable(error):
        reason = next((link for link in chain if isinstance(link, _NO_ANSWER)), error)
        missing = any(isinstance(link, _NOT_CACHED) for link in chain)
        also = ", and what is needed is not in the local cache" if missing else ""
        return (
            f"{repo}: the Hub cannot be reached ({_said(reason)}){also}. Check the network, then "
            "run the same command again."
        )
    return system_message(error) or (
        f"{repo}: the Hub's answer cannot be used ({_said(error)}). Run the same command again; if "
        f"that does not help, {_STATUS}."
    )


def _status_message(repo: str, answer: HfHubHTTPError) -> str:
    """What a status means, where it does not stand for something that is missing."""
    status = answer.response.status_code
    means, advice = {
        401: ("does not accept the token", "log in with `hf auth login`, or set HF_TOKEN"),
        402: ("asks for payment", "add credit to the account, then run the same command again"),
        403: ("refuses this to the token in use", "use one that may do this"),
        404: ("does not find it", "check the name"),
        409: ("is changing the same thing already", "run the same command again"),
        429: ("has had too many requests", "wait some minutes, then run the same command again"),
    }.get(status, ("refuses", "check the names, and what is sent"))
    if status >= 500:
        means = "has a fault of its own"
        advice = f"run the same command again later, or {_STATUS}"
    return f"{repo}: the Hub {means} ({_said(answer)}): {advice}."

"""What went wrong on the Hub, in one sentence that says what to do."""

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import causes


def missing_message(repo: str) -> str:
    """What to say where there is no repository of that name."""
    return (
        f"There is no repository {repo} on the Hub, or it is private: check the name, and log in "
        "with `hf auth login` or set HF_TOKEN."
    )


def hub_message(repo: str, revision: str | None, error: BaseException) -> str:
    """What went wrong on the Hub, in one sentence that says what to do.

    Other libraries wrap what the Hub said, so the causes of `error` count too.
    """
    known = (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError,
             LocalEntryNotFoundError, OfflineModeIsEnabled, EntryNotFoundError)  # fmt: skip
    error = next((cause for cause in causes(error) if isinstance(cause, known)), error)
    if isinstance(error, GatedRepoError):
        return (
            f"{repo} is gated: ask for access on its page, then log in with `hf auth login` or "
            "set HF_TOKEN."
        )
    if isinstance(error, RepositoryNotFoundError):
        return missing_message(repo)
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}."
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return f"{repo} is not in the local cache and the Hub cannot be reached."
    if isinstance(error, EntryNotFoundError):
        return f"{repo} lacks a file that it should have: {error}"
    return f"{repo} could not be loaded: {error}"

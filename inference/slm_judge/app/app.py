"""`slm-judge app`: the page on which people try a judge, annotate, and settle disagreements."""

import threading
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from slm_judge.errors import DataError, JudgeError, require_extra
from slm_judge.files import check_places, content_hash
from slm_judge.judge.judge import Judge, LoadOptions
from slm_judge.progress import progress_bar
from slm_judge.rubric import Rubric
from slm_judge.screen import say
from slm_judge.web import address_of, check_host, check_secret, hosts_of, listen, run

from .items import TABLE, Items, draw, read_items
from .judging import Judges, Named
from .standing import check_names, export
from .store import Store, Task

PORT = 7860
PASSWORD = "SLM_JUDGE_PASSWORD"  # noqa: S105 (the name of a variable)
STORE = Path("annotations.db")


@dataclass(frozen=True)
class Settings:
    """What the page shows, and to whom."""

    model: str | None = None
    """Hub repository, folder or `.gguf` file; None annotates without a judge."""
    compare: str | None = None
    """A second judge beside it, or a base that was not trained."""
    rubric: Path | None = None
    """By default the judge's own."""
    items: str | None = None
    """Table of the items to annotate; None goes on with those of the store, if there is one."""
    store: Path | None = None
    task: Task = field(default_factory=Task)
    draw: int | None = None
    """Items of a design."""
    columns: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    review_below: float | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    password: str | None = None
    public: bool = False
    """Anybody may try the judge: a Space. There are no items then."""
    browser: bool = True
    revision: str | None = None
    options: LoadOptions = field(default_factory=LoadOptions)


def serve(settings: Settings, console: Console | None = None) -> None:
    """Serve the page until it is interrupted.

    Raises:
        JudgeError: something is missing or contradicts; said before any model is loaded, where
            that is possible.
        MissingExtraError: the extra `app` is not installed.
    """
    console = console or Console()
    require_extra("app")
    from .server import Page, application

    check(settings)
    listening = listen(settings.host, settings.port, PORT)
    rubric, judges = load_judges(settings)
    try:
        store, notes = prepare(settings, rubric, judges, console)
    except BaseException:
        judges.close()
        raise
    address = address_of(settings.host, listening)
    say(console, [*notes, *([f"Answers are kept in {store.path}."] if store else [])])
    say(console, [f"The page: {address} (Ctrl-C ends it)"], "")
    if settings.browser and not settings.public:
        # A browser of the terminal is waited for, and would wait for the page.
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    page = Page(rubric, judges, store, settings.review_below, notes)
    run(application(page, hosts_of(settings.host), settings.password), listening, grace=5)


def write_answers(settings: Settings, output: Path, overwrite: bool = False) -> str:
    """Write the answers of a store as a table, a row an item and annotator; a line about it.

    Raises:
        JudgeError: there is no rubric, no store, or no answer; or the file is there already.
    """
    path = settings.store or STORE
    if settings.rubric is None or not path.is_file():
        raise JudgeError("--export needs --rubric, and the --store that the page wrote.")
    read = {"--rubric": settings.rubric, "--store": path, "--items": settings.items}
    check_places(read, {"--export": output}, overwrite)
    store = Store(path, Rubric.from_file(settings.rubric), settings.task)
    say(Console(), _about_stale(store))
    return f"{export(store, output):,} rows: {output}"


def check(settings: Settings) -> None:
    """Refuse what contradicts, before any model is loaded.

    Raises:
        JudgeError: says what is missing.
    """
    if not settings.model and not settings.rubric:
        raise JudgeError("Name a judge; or, to annotate without one, --rubric and --items.")
    if not settings.model and not (settings.items or settings.store):
        raise JudgeError("Without a judge there must be items to annotate: --items.")
    if settings.compare and not settings.model:
        raise JudgeError("--compare stands beside a judge: name that too.")
    if settings.public and (settings.items or settings.store):
        raise JudgeError("A public page tries a judge out; it has no items.")
    if settings.store and not settings.items and not settings.store.is_file():
        raise JudgeError(f"There is no store {settings.store}; --items says what to annotate.")
    if settings.draw and settings.task.order != "design":
        raise JudgeError("--draw is the number of items of --order design.")
    check_host(settings.host)
    host = "127.0.0.1" if settings.public else settings.host  # there, anybody may come
    check_secret(host, settings.password or None, f"password in the variable {PASSWORD}")


def load_judges(settings: Settings) -> tuple[Rubric, Judges]:
    """The judges of the page, and the rubric that they and people answer."""
    rubric = Rubric.from_file(settings.rubric) if settings.rubric else None
    named: list[Named] = []
    keyed = settings.items or settings.store
    for own, model in ((True, settings.model), (False, settings.compare)):
        if model is None:
            continue
        revision, options = settings.revision, settings.options
        if not own:  # it has revisions and files of its own
            revision, options = None, LoadOptions(n_threads=options.get("n_threads"))
        if rubric is None:
            judge = Judge.from_pretrained(model, revision, **options)
            rubric = judge.rubric
        else:
            from slm_judge.evaluation.zero_shot import load  # also loads bases

            judge = load(model, rubric, revision, **options)
        name = (
            model if model.count("/") == 1 and not Path(model).exists() else judge.backend.path.name
        )
        name = f"{name} (2)" if name in [one.name for one in named] else name
        named.append(Named(name, content_hash(judge.backend.path) if keyed else "", judge))
    assert rubric is not None  # `check` saw to that
    return rubric, Judges(named, rubric)


def prepare(
    settings: Settings, rubric: Rubric, judges: Judges, console: Console
) -> tuple[Store | None, list[str]]:
    """The store with its items, if there are any, and what is to be said about them."""
    if not settings.items and not settings.store:
        return None, []
    check_names(rubric)
    items = Items()
    if settings.items:
        items = read_items(settings.items, rubric, settings.columns, settings.prefix)
    store = Store(settings.store or STORE, rubric, settings.task)
    _check_order(store)
    store.add_items(items.states, items.chances)
    store.add_judged(TABLE, items.judged)
    notes = [*items.notes, *_about_stale(store)]
    if judges.named and not items.judged:
        judges.judge_items(store)
    if settings.task.order == "design":
        with progress_bar("items", console=console) as bar:
            task = bar.add_task("judging items", total=None)
            judges.wait()
            bar.update(task, total=1, completed=1)
        if judges.problem:
            raise JudgeError(judges.problem)
        notes.append(_design(store, settings.draw))
    return store, notes


def _about_stale(store: Store) -> list[str]:
    return [
        f"The rubric changed: {n} answers about {name} were given under another name, to another "
        "wording or to other options. They are kept and do not count; their items come again."
        for name, n in store.stale().items()
    ]


def _check_order(store: Store) -> None:
    """Refuse to give out all items of a store of which some were drawn."""
    (known,) = store.rows("SELECT COUNT(*) AS n, SUM(drawn) AS drawn FROM item")
    if store.task.order != "design" and 0 < (known["drawn"] or 0) < known["n"]:
        raise DataError(
            f"{store.path} has a design: go on with --order design, or name another --store."
        )


def _design(store: Store, size: int | None) -> str:
    """Draw the items of a design, once a store."""
    known = store.rows("SELECT COUNT(*) AS n, SUM(drawn) AS drawn FROM item")[0]
    if known["drawn"]:
        if size not in (None, known["drawn"]):
            raise DataError(f"{store.path} has a design of {known['drawn']} items already. A new "
                            "one needs another --store.")  # fmt: skip
        return f"The design in {store.path} stands: {known['drawn']} of {known['n']} items."
    rows = store.rows("SELECT id, chance FROM item WHERE chance NOT NULL")
    first = {row["id"]: row["chance"] for row in rows}
    if 0 < len(first) < known["n"]:
        raise DataError("Only some items have a review_probability; a draw needs all or none.")
    if size is None and first:
        store.draw({}, list(first))
        return f"The design is that of the table: {known['n']} items with their probabilities."
    if size is None:
        raise DataError("--order design needs --draw, the number of items to draw.")
    query = """SELECT id, (SELECT MIN(confidence) FROM verdicts WHERE item = i.id) AS sure,
               (SELECT COUNT(*) FROM verdicts WHERE item = i.id) AS asked FROM item i"""
    rows = store.rows(query)
    if not all(row["asked"] for row in rows):
        raise DataError("--order design draws by the judge's uncertainty: name a judge, or items "
                        "with its answers.")  # fmt: skip
    chances, drawn = draw({row["id"]: row["sure"] or 0.0 for row in rows}, size)
    # Items that were drawn once already are here, and drawn again, with the product of both.
    store.draw({name: one * first.get(name, 1.0) for name, one in chances.items()}, drawn)
    return f"Drawn: {size} of {len(rows)} items, by the judge's uncertainty."

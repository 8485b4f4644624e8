"""The command line: parses, calls one function, and prints. Each stage is loaded by name."""

import atexit
import importlib
import json
import logging
import os
import signal
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .agreement import AUDIT, EPSILON, LEVEL, MARGIN, RESAMPLES
from .data import ITEM_ID
from .errors import JudgeError, VerificationError, require_extra, system_message
from .screen import say
from .version import __version__

app = typer.Typer(
    help="Train a small language model to annotate like your annotators, and run it anywhere.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
rubric_app = typer.Typer(help="Work on rubrics.", no_args_is_help=True)
app.add_typer(rubric_app, name="rubric")

RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of the run, e.g. runs/demo, or its recipe.")
]
ItemColumn = Annotated[str, typer.Option(help="Column that names the item.")]
AnnotatorColumn = Annotated[
    str | None, typer.Option(help="Column that names the annotator, with a row an annotation.")
]
ExportFiles = Annotated[
    list[str], typer.Argument(help="Export of an annotation tool, or a table of any shape.")
]
ExportFormat = Annotated[
    str,
    typer.Option(
        "--format",
        help="label-studio, doccano, prodigy, argilla, potato, mturk, qualtrics, google-forms.",
    ),
]
OwnItemColumn = Annotated[str | None, typer.Option(help="Column that names the item.")]
TextColumns = Annotated[list[str] | None, typer.Option(help="Column of a text of the item.")]
LabelColumns = Annotated[list[str] | None, typer.Option(help="Column of a question's answers.")]
NamedColumns = Annotated[
    str, typer.Option(help="How columns of annotators are named, e.g. '{question}_{annotator}'.")
]
Annotators = Annotated[
    int, typer.Option(help="How many people are behind shares of a label.", min=0)
]
ItemTable = Annotated[
    str | None, typer.Option(help="Table of the texts, where the export names only items.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files.")]


def _stage(module: str, extra: str) -> Any:
    """Import a stage, or name the extra that it needs."""
    require_extra(extra)
    return importlib.import_module(f"slm_judge.{module}")


@rubric_app.command("check")
def rubric_check(
    file: Annotated[Path, typer.Argument(help="YAML file of a rubric.")],
    base: Annotated[
        str | None, typer.Option(help="Show the prompt, and count tokens, as this base does.")
    ] = None,
) -> None:
    """Validate a rubric, print the prompt that it makes, and say what it costs in tokens."""
    from .artefact.preview import preview, token_cost
    from .rubric import Rubric

    rubric = Rubric.from_file(file)
    console = Console()
    say(console, rubric.overview(), "")
    say(console, [*rubric.warnings(), *token_cost(rubric, base)])
    console.print()
    typer.echo(preview(rubric, base))


@rubric_app.command("draft")
def rubric_draft(
    files: ExportFiles,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="YAML file to write; else it is printed.")
    ] = None,
    format_: ExportFormat = "",
    item_id: OwnItemColumn = None,
    annotator: AnnotatorColumn = None,
    text: TextColumns = None,
    label: LabelColumns = None,
    columns: NamedColumns = "",
    annotators: Annotators = 0,
    items: ItemTable = None,
    overwrite: Overwrite = False,
) -> None:
    """Propose a rubric for a table of annotations, with questions to you as comments."""
    from .data.importers.roles import Options
    from .data.importing import draft_rubric

    options = Options(
        format_, item_id, annotator, text or [], label or [], columns, annotators, items
    )
    drafted, lines = draft_rubric(files, options, output, overwrite)
    if not output:
        typer.echo(drafted, nl=False)
    console = Console(stderr=not output)
    say(console, lines, "" if output else "# ")
    if output:
        say(console, [f"Written: {output}. Answer each '# ?' in it, then: slm-judge rubric check."])


@app.command("import")
def import_(
    files: ExportFiles,
    output: Annotated[Path, typer.Option(help="Table to write: .csv, .tsv, .jsonl or .parquet.")],
    rubric: Annotated[
        Path | None, typer.Option(help="Draft of a rubric to write, e.g. draft.yaml.")
    ] = None,
    format_: ExportFormat = "",
    item_id: OwnItemColumn = None,
    annotator: AnnotatorColumn = None,
    text: TextColumns = None,
    label: LabelColumns = None,
    columns: NamedColumns = "",
    annotators: Annotators = 0,
    items: ItemTable = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a table with a row an annotation, and a draft of a rubric, of people's exports."""
    from .data.importers.roles import Options
    from .data.importing import import_annotations

    options = Options(
        format_, item_id, annotator, text or [], label or [], columns, annotators, items
    )
    console = Console()
    say(console, import_annotations(files, output, options, rubric, overwrite), "")
    say(console, [f"Written: {output}{f' and {rubric}' if rubric else ''}."], "")
    wrong = "where a guess is wrong: --format, --item-id, --annotator, --text, --label, --columns."
    say(console, [*([] if rubric else ["--rubric also writes a draft of a rubric."]), wrong])


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe, e.g. recipes/tiny.yaml.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw an earlier run of the same name away.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(help="Train with so many seeds; keep the best by validation.")
    ] = None,
) -> None:
    """Train an adapter on annotated data."""
    from .recipe import Recipe

    settings, stage = Recipe.from_file(recipe), _stage("training.train", "train")
    stage.train(settings, resume=resume, overwrite=overwrite, seeds=seeds)


@app.command()
def baselines(
    recipe: Annotated[Path, typer.Argument(help="Recipe whose data and split are used.")],
    predictions: Annotated[
        list[str] | None,
        typer.Option(help="name=file: what another system said (item_id, a column a dimension)."),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.")] = RESAMPLES,
    zero_shot: Annotated[
        list[str] | None, typer.Option(help="Base or judge (Hub, folder, .gguf, smollm2) to ask.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Sentence encoder (Hub, folder) for logistic regression.")
    ] = None,
    openai: Annotated[
        str | None,
        typer.Option(help="Chat server, e.g. https://api.openai.com/v1 (key: OPENAI_API_KEY)."),
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the model on the --openai server.")] = "",
    runs: Annotated[int, typer.Option(help="How often to ask the server.", min=1)] = 1,
    temperature: Annotated[float, typer.Option(help="Of the server's answers.", min=0)] = 0.0,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.", min=1, max=256)] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds for an answer.", min=1)] = 120.0,
    price_in: Annotated[float, typer.Option(help="Of a million prompt tokens.", min=0)] = 0.0,
    price_out: Annotated[float, typer.Option(help="Of a million completion tokens.", min=0)] = 0.0,
) -> None:
    """Score the yardsticks: majority, TF-IDF, the annotators, the judge, other systems."""
    from .data.predictions import parse_predictions
    from .recipe import Recipe

    stage = _stage("evaluation.baselines", "evaluate")
    if model and not openai:
        raise JudgeError("--model is the name of a model on a server: name that in --openai.")
    how = runs, temperature, concurrency, timeout, (price_in, price_out)
    server = stage.Server(openai, model, *how) if openai else None
    more = {"encoder": encoder, "zero_shots": zero_shot or [], "server": server}
    settings, named = Recipe.from_file(recipe), parse_predictions(predictions or [])
    stage.baselines(settings, named, resamples, **more)


@app.command()
def curve(
    recipe: Annotated[Path, typer.Argument(help="Recipe whose data and split are used.")],
    items: Annotated[
        str | None,
        typer.Option(help="Training items, e.g. 50,100,200; by default all, a half, a quarter..."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each size.")] = 3,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results; by default runs/NAME-curve.")
    ] = None,
) -> None:
    """Train on more and more items: the learning curve, and how many more would help.

    Interrupted, the same command goes on where it stopped; nothing is computed twice.
    """
    from .recipe import Recipe

    stage, figures = _stage("training.curve", "train"), _stage("model_card.figures", "evaluate")
    sizes, console = _whole_numbers("--items", items or ""), Console()
    report, folder = stage.learning_curve(Recipe.from_file(recipe), sizes, seeds, output)
    stage.table(report).show(console)
    say(console, [f"{n}: {d['outlook']['said']}" for n, d in report["dimensions"].items()], "")
    say(console, [str(figures.write_curve(report, folder))], "Figure: ")


@app.command()
def export(
    run: RunFolder,
    lora: Annotated[
        bool,
        typer.Option("--lora", help="Instead: base and adapter as two GGUF files (gguf-lora/)."),
    ] = False,
) -> None:
    """Merge the adapter and write the bitsandbytes and GGUF artefacts."""
    from .run import Run

    if lora:
        _stage("export.lora", "export").export_lora(Run.find(run))
    else:
        _stage("export.export", "export").export(Run.find(run))


@app.command()
def verify(run: RunFolder) -> None:
    """Run the exported artefacts on held-out items; exit 1 where they differ too much."""
    from .run import Run

    stage = _stage("export.verify", "export")
    report = stage.verify(Run.find(run))
    console = Console()
    stage.agreement_table(report).show(console)
    say(console, [*report["notes"], *report["undecided"]])
    if report["failures"]:
        raise VerificationError("Verification failed:\n" + "\n".join(report["failures"]))


@app.command()
def evaluate(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A verified run, or its recipe.")
    ] = None,
    predictions: Annotated[
        list[str] | None, typer.Option(help="Instead: name=file with item_id and the dimensions.")
    ] = None,
    annotations: Annotated[str | None, typer.Option(help="Table of human annotations.")] = None,
    rubric: Annotated[Path | None, typer.Option(help="YAML file of the rubric.")] = None,
    item_id: ItemColumn = ITEM_ID,
    annotator: AnnotatorColumn = None,
    group: Annotated[
        list[str] | None, typer.Option(help="Column to probe for bias, e.g. source.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Column whose items belong together, e.g. author (files).")
    ] = None,
    new_annotators: Annotated[
        bool, typer.Option("--new-annotators", help="Intervals speak about new annotators too.")
    ] = False,
    expertise: Annotated[
        str, typer.Option(help="Of the annotators: expert, skilled or crowd.")
    ] = "skilled",
    margin: Annotated[
        float, typer.Option(help="Alpha that a system may lose to the first one.", min=0)
    ] = MARGIN,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.", min=100)] = RESAMPLES,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the report; by default RUN/report.")
    ] = None,
) -> None:
    """Report how a judge agrees with annotators: a page, figures and every number."""
    stage, page = _stage("evaluation.evaluate", "evaluate"), _stage("model_card.page", "evaluate")
    from .data.predictions import parse_predictions
    from .data.read import Columns
    from .evaluation.dimension import Settings

    _choose("--expertise", expertise, *EPSILON)
    evaluation, folder = stage.find(
        run,
        parse_predictions(predictions or []),
        annotations,
        rubric,
        output,
        Columns(item_id, annotator, cluster, further=group or []),
        Settings(
            resamples=resamples,
            epsilon=EPSILON[expertise],
            margin=margin,
            new_annotators=new_annotators,
        ),
    )
    report = stage.evaluate(evaluation)
    console = Console()
    said = [f"{d}: {note}" for d, one in report["dimensions"].items() for note in one["notes"]]
    say(console, [*report["notes"], *said])
    page.table(report).show(console)
    say(console, [str(page.write(report, folder))], "Report: ")


@app.command()
def threshold(
    run: RunFolder,
    error: Annotated[
        float, typer.Option(help="Share of wrong labels to accept among those that are kept.")
    ] = 0.1,
    confidence: Annotated[
        float, typer.Option(help="Probability with which a guaranteed threshold holds that.")
    ] = LEVEL,
) -> None:
    """Choose the confidence below which a human should look (annotate --review-below)."""
    require_extra("evaluate")
    from .evaluation.threshold import threshold_notes, threshold_table, thresholds
    from .run import Run

    report, console = thresholds(Run.find(run), error, confidence), Console()
    threshold_table(report, error, confidence).show(console)
    say(console, threshold_notes(report, confidence))


@app.command()
def estimate(
    corpus: Annotated[str, typer.Argument(help="Table that `slm-judge annotate` wrote.")],
    annotations: Annotated[str, typer.Option(help="Human labels of some of its items.")],
    rubric: Annotated[Path, typer.Option(help="YAML file of the rubric.")],
    item_id: ItemColumn = ITEM_ID,
    annotator: AnnotatorColumn = None,
    prefix: Annotated[str, typer.Option(help="Of the judge's columns.")] = "",
    run: Annotated[
        Path | None, typer.Option(help="The judge's run: leave out what it was trained on.")
    ] = None,
    probability: Annotated[
        str | None, typer.Option(help="Column: the chance with which an item was drawn.")
    ] = None,
    strata: Annotated[
        str | None, typer.Option(help="Column: part of the corpus that was drawn from separately.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column: items that are alike, e.g. of one conversation.")
    ] = None,
    folds: Annotated[
        str | None,
        typer.Option(help="Column: prefix of the judge that was not trained on the item."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help='Regression, e.g. "refund ~ channel + urgency".')
    ] = None,
    logit: Annotated[
        bool, typer.Option("--logit", help="The regressions are logistic, not linear.")
    ] = False,
    column: Annotated[
        list[str] | None, typer.Option(help="field=column, where the corpus's name differs.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Also write the numbers as JSON.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Estimate means, shares and regressions of a corpus, corrected for the judge's errors."""
    require_extra("evaluate")
    from .evaluation.estimate import Drawing, as_json, estimate_table
    from .evaluation.estimate import estimate as estimate_corpus
    from .files import check_places, write_json
    from .rubric import Rubric
    from .run import Run

    read = {"the corpus": corpus, "--annotations": annotations, "--rubric": rubric}
    check_places(read, {"--output": output}, overwrite)
    drawing = Drawing(
        item_id, annotator, prefix, probability, strata, group, folds, _columns(column or [])
    )
    trained = Run.find(run) if run else None
    models, questions = model or [], Rubric.from_file(rubric)
    found = estimate_corpus(corpus, annotations, questions, drawing, trained, models, logit)
    console = Console()
    say(console, found.notes)
    say(console, found.doubts, "WARNING: ", "bold red")
    estimate_table(found).show(console)
    if output:
        write_json(output, as_json(found))


@app.command()
def compare(
    run: RunFolder,
    new: Annotated[str, typer.Argument(help="Table of texts, or what `annotate` made of one.")],
    annotations: Annotated[
        str | None, typer.Option(help="Human labels of some items, where NEW has none.")
    ] = None,
    item_id: ItemColumn = ITEM_ID,
    annotator: AnnotatorColumn = None,
    group: Annotated[
        str | None, typer.Option(help="Column: items that are alike; by default data.group.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Of the judge's columns in NEW.")] = "",
    column: Annotated[
        list[str] | None, typer.Option(help="field=column, where the data's name differs.")
    ] = None,
    artefact: Annotated[
        str,
        typer.Option(
            help="Of the run, e.g. Q4_0 or bnb-4bit; by default the GGUF that people get."
        ),
    ] = "",
    tolerance: Annotated[float, typer.Option(help="Differences that do not matter.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare new texts with a run's held-out items; exit 1 where the judge's answers moved."""
    require_extra("evaluate")
    from .evaluation import drift
    from .run import Run

    columns = _columns(column or [])
    source = drift.Source(new, item_id, annotations, annotator, group, prefix, columns, artefact)
    report = drift.compare(Run.find(run), source, tolerance, show=not as_json)
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        console = Console()
        drift.drift_table(report).show(console)
        say(console, report["cannot_be_said"], "cannot be said: ")
        say(console, report["notes"])
        say(console, drift.verdict(report), "")
    if report["drift"]:
        raise typer.Exit(1)


@app.command()
def plan(
    pilot: Annotated[
        str | None, typer.Argument(metavar="[PILOT]", help="Annotations to learn from.")
    ] = None,
    rubric: Annotated[Path | None, typer.Option(help="YAML file of the rubric.")] = None,
    type_: Annotated[
        str, typer.Option("--type", help="Instead of a rubric: score, choice or noul.")
    ] = "noul",
    options: Annotated[int, typer.Option(help="Of the question, with --type.", max=255)] = 2,
    items: Annotated[
        int | None, typer.Option(help="That no judge is trained on; by default for --width.")
    ] = None,
    annotators: Annotated[
        int | None, typer.Option(help="Of each item; by default the pilot's, or 3.", min=1)
    ] = None,
    pool: Annotated[
        int | None, typer.Option(help="All annotators; by default the pilot's, or as many.", min=1)
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Expected among annotators; by default the pilot's.")
    ] = None,
    prevalence: Annotated[
        str, typer.Option(help="Of the options, e.g. 0.7,0.2,0.1; by default the pilot's, or even.")
    ] = "",
    accuracy: Annotated[
        float | None, typer.Option(help="Share of annotations the judge meets; an annotator's.")
    ] = None,
    width: Annotated[float, typer.Option(help="Of alpha's interval, to find the items.")] = 0.1,
    expertise: Annotated[
        str, typer.Option(help="Of the annotators: expert, skilled or crowd.")
    ] = "skilled",
    margin: Annotated[
        float, typer.Option(help="Alpha a file may lose (verify).", min=0.001)
    ] = MARGIN,
    corpus: Annotated[
        int, typer.Option(help="Items that the judge alone labels (estimate).", min=1)
    ] = 10_000,
    group_size: Annotated[
        int | None,
        typer.Option(
            help="Items of a conversation, author, ...; the pilot's, or 1.", min=1, max=1000
        ),
    ] = None,
    group_correlation: Annotated[
        float | None, typer.Option(help="Of items in a group, 0 to 1; the pilot's, or 0.1.")
    ] = None,
    item_id: ItemColumn = ITEM_ID,
    annotator: AnnotatorColumn = None,
    group: Annotated[
        str | None, typer.Option(help="Column of the pilot: items that belong together.")
    ] = None,
) -> None:
    """Say, before anybody annotates, what so many items and annotators would show."""
    require_extra("evaluate")
    from .data.read import read_annotations
    from .evaluation import plan as stage
    from .rubric import Rubric

    _choose("--expertise", expertise, *EPSILON)
    questions = Rubric.from_file(rubric) if rubric else stage.a_dimension(type_, options)
    if pilot and not rubric:
        raise JudgeError("A pilot needs --rubric, which says what its columns mean.")
    shares = _numbers("--prevalence", prevalence) if prevalence else None
    tests = EPSILON[expertise], margin, corpus, group_size, group_correlation
    expected = stage.Expected(annotators, pool, alpha, shares, accuracy, *tests)
    read = read_annotations(pilot, questions, item_id, annotator, (), group) if pilot else None
    console = Console()
    say(console, read.notes if read else [])
    worlds = stage.worlds(questions, expected, read.items if read else None)
    plans = stage.plan(worlds, items, width)
    stage.plan_table(plans, width).show(console)
    say(console, [f"{one.world.dimension.name}: {note}" for one in plans for note in one.notes])


@app.command()
def push(
    run: RunFolder,
    user: Annotated[
        str | None, typer.Option(help="User or organisation; by default who is logged in.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Create private repositories.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print repositories, files and sizes; push nothing.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    data: Annotated[
        bool, typer.Option("--data", help="Also publish the annotated items, as a dataset.")
    ] = False,
    space: Annotated[
        bool, typer.Option("--space", help="Also make USER/NAME-demo, where people try the judge.")
    ] = False,
) -> None:
    """Push a verified run to the Hub: four repositories, one commit each, and a collection."""
    from .run import Run

    _stage("export.push", "export").push(
        Run.find(run),
        user=user,
        private=private,
        revision=revision,
        dry_run=dry_run,
        data=data,
        space=space,
    )


@app.command()
def job(
    recipe: Annotated[Path, typer.Argument(help="Recipe, whose local data are sent too.")],
    flavor: Annotated[str, typer.Option(help="Machine (hf jobs hardware), e.g. a10g-large.")],
    timeout: Annotated[str, typer.Option(help="When the Hub ends it, e.g. 90m or 8h.")] = "8h",
    user: Annotated[
        str | None, typer.Option(help="User or organisation; by default who is logged in.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Push the judge into private repositories.")
    ] = False,
) -> None:
    """Train, export, verify and push on a machine that the Hub lends (which it bills)."""
    from .recipe import Recipe

    stage = importlib.import_module("slm_judge.export.job")  # needs no extra here
    stage.job(Recipe.from_file(recipe), flavor, timeout, user, private)


@app.command()
def annotate(
    data: Annotated[
        str,
        typer.Argument(help="CSV, JSONL or Parquet file, folder of Parquet, or user/name (Hub)."),
    ],
    model: Annotated[str, typer.Option(help="Hub repository, folder or .gguf file.")],
    output: Annotated[
        str,
        typer.Option(
            help="File to write: .csv, .tsv, .jsonl or .parquet; or a folder/ of Parquet."
        ),
    ],
    backend: Annotated[str, typer.Option(help="auto, gguf or transformers.")] = "auto",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model.")
    ] = None,
    quantization: Annotated[str | None, typer.Option(help="GGUF file to use, e.g. Q8_0.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="GGUF adapter that makes a judge of the model, a base.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="field=column, where the data's name differs.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Put before the names of the new columns.")] = "",
    on_empty: Annotated[
        str, typer.Option(help="A row without a field or its text: skip or fail.")
    ] = "skip",
    on_too_long: Annotated[
        str, typer.Option(help="A row that is too long: skip, fail or truncate.")
    ] = "skip",
    review_below: Annotated[
        float | None, typer.Option(help="Also write the rows below this confidence to --review.")
    ] = None,
    review_share: Annotated[
        float, typer.Option(help="Also review this share of the other rows, drawn at random.")
    ] = 0.0,
    review: Annotated[
        str | None, typer.Option(help="File for people to review; by default OUTPUT.review.")
    ] = None,
    max_memory: Annotated[
        float | None, typer.Option(help="GiB for weights and cache (gguf).")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads (gguf).", min=1)] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda or mps (transformers); by default a GPU if there is one."),
    ] = None,
    compile_layers: Annotated[
        bool,
        typer.Option("--compile", help="Faster on a GPU once it is compiled (transformers)."),
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load a GGUF file without trying it in a process first.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="local, or ray: a pool of workers (extra `ray`).")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Of --engine ray, a judge each; by default 2.", min=1)
    ] = None,
    gpus: Annotated[float, typer.Option(help="Of each worker of --engine ray.", min=0)] = 0.0,
    rows_per_piece: Annotated[
        int, typer.Option(help="Rows that are computed and kept as a whole.", min=1)
    ] = 2048,
    exact: Annotated[
        bool, typer.Option("--exact", help="Each row by itself: probabilities to the last bit.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw finished pieces of another job away.")
    ] = False,
) -> None:
    """Annotate a table: adds a column a dimension, its confidence, and the outcome.

    Interrupted, the same command goes on where it stopped. Exit code 3: some rows were not
    annotated; the outcome column says why.
    """
    from .annotate.job import annotate_table
    from .annotate.rows import AnnotateOptions
    from .data.tables import check_output
    from .judge.judge import Judge

    check_output(output)
    _choose("--engine", engine, "local", "ray")
    if engine == "local" and (workers or gpus):
        raise JudgeError("--workers and --gpus are of --engine ray: name that too.")
    _choose("--on-empty", on_empty, "skip", "fail")
    _choose("--on-too-long", on_too_long, "skip", "fail", "truncate")
    if any("\ud800" <= one <= "\udfff" for one in prefix):  # bytes that are no UTF-8
        raise JudgeError("--prefix is not UTF-8.")
    options = AnnotateOptions(
        columns=_columns(column or []),
        prefix=prefix,
        on_empty=on_empty,  # type: ignore[arg-type]
        on_too_long=on_too_long,  # type: ignore[arg-type]
        review_below=review_below,
        review_share=review_share,
        review=review,
        rows_per_piece=rows_per_piece,
    )
    settings: dict[str, Any] = {
        "revision": revision,
        "backend": backend,
        "quantization": quantization,
        "adapter": str(Path(adapter).resolve()) if adapter and Path(adapter).exists() else adapter,
        "max_memory": max_memory,
        "n_threads": threads,
        "device": device,
        "compile": compile_layers,
        "exact": exact,
        "trust": trust,
    }
    pool = None
    if engine == "ray":
        require_extra("ray")
        from .annotate.ray import RayEngine

        if Path(model).exists():
            model = str(Path(model).resolve())
        pool = RayEngine(model, {**settings, "n_threads": threads or 1}, workers or 2, gpus)
        settings["compile"] = False  # here nothing is computed
    with Judge.from_pretrained(model, **settings) as judge:
        if pool:
            pool.check(judge)
        summary = annotate_table(judge, data, output, options, overwrite, engine=pool)
    console = Console()
    say(console, summary.notes)
    done = summary.rows - summary.not_annotated
    counts = [f"{count:>9,} {outcome}" for outcome, count in summary.outcomes.most_common()]
    counts.append(f"{done:,} of {summary.rows:,} rows annotated: {output}")
    if options.reviews:
        counts.append(f"{summary.reviewed:,} rows to review")
    say(console, [*counts, *summary.flip_rates()], "")
    if summary.not_annotated:
        raise typer.Exit(3)


@app.command()
def select(
    pool: Annotated[
        str, typer.Argument(help="Table of items, or what `slm-judge annotate` wrote.")
    ],
    output: Annotated[str, typer.Option(help="File for the items to annotate next.")],
    n: Annotated[int, typer.Option("-n", "--number", help="How many items.", min=1)] = 200,
    model: Annotated[
        str | None, typer.Option(help="Judge to ask about the pool (Hub, folder or .gguf).")
    ] = None,
    rubric: Annotated[Path | None, typer.Option(help="YAML file, where no model is named.")] = None,
    audit: Annotated[
        float,
        typer.Option(help="Share that is drawn at random; the others by doubt and diversity."),
    ] = AUDIT,
    annotated: Annotated[
        list[str] | None, typer.Option(help="Table of items to leave out: annotated already.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Also write all rows with their chances, for `estimate`.")
    ] = None,
    item_id: ItemColumn = ITEM_ID,
    column: Annotated[
        list[str] | None, typer.Option(help="field=column, where the pool's name differs.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Of the judge's columns.")] = "",
    seed: Annotated[int, typer.Option(help="Of the draw.", min=0)] = 0,
) -> None:
    """Choose what to annotate next, each item with a known chance, so that estimates stay valid."""
    from .judge.judge import Judge
    from .rubric import Rubric

    if not (model or rubric):
        raise JudgeError("Name the judge (--model), or the rubric of the pool (--rubric).")
    stage, questions = _stage("evaluation.select", "evaluate"), rubric and Rubric.from_file(rubric)
    columns = _columns(column or [])
    choice = stage.Choice(n, audit, item_id, columns, prefix, annotated or [], seed)
    with Judge.from_pretrained(model) if model else nullcontext() as judge:
        asked = questions or (judge and judge.rubric)
        say(Console(), stage.select(pool, output, asked, choice, judge, corpus))


@app.command("app")
def app_(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Hub repository, folder or .gguf file.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="A second judge, or an untrained base, to try beside it.")
    ] = None,
    items: Annotated[
        str | None, typer.Option(help="Table of items, e.g. the review file of `annotate`.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="File of the answers; by default annotations.db.")
    ] = None,
    rubric: Annotated[
        Path | None, typer.Option(help="YAML file; by default the judge's own rubric.")
    ] = None,
    order: Annotated[str, typer.Option(help="random, uncertainty or design.")] = "random",
    draw: Annotated[int | None, typer.Option(help="Items of --order design.", min=1)] = None,
    overlap: Annotated[int, typer.Option(help="Annotators an item.", min=1)] = 1,
    show_judge: Annotated[
        str, typer.Option(help="To annotators: never, after their answer, or before it.")
    ] = "never",
    review_below: Annotated[
        float | None, typer.Option(help="Confidence under which a person should look.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="field=column, where the data's name differs.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Of a judge's columns in the table.")] = "",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model.")
    ] = None,
    quantization: Annotated[str | None, typer.Option(help="GGUF file to use, e.g. Q8_0.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads (gguf).")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine need a password.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="By default 7860, or any that is free.", min=0, max=65535)
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="SLM_JUDGE_PASSWORD", help="Better in the variable: others see options."
        ),
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    export: Annotated[
        Path | None, typer.Option(help="Write the store's answers as a table, and end.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file of --export.")
    ] = False,
) -> None:
    """A page to try a judge, annotate, settle disagreements, and see where you stand."""
    from .app import app as page
    from .app.store import Task

    _choose("--order", order, "random", "uncertainty", "design")
    _choose("--show-judge", show_judge, "never", "after", "before")
    settings = page.Settings(
        model, compare, rubric, items, store, Task(order, overlap, show_judge), draw,  # type: ignore[arg-type]
        _columns(column or []), prefix, review_below, host, port, password, browser=browser,
        revision=revision, options={"quantization": quantization, "n_threads": threads},
    )  # fmt: skip
    if export:
        say(Console(), [page.write_answers(settings, export, overwrite)], "")
    else:
        page.serve(settings)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Hub repository, folder or .gguf file.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine need a key.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="By default 8080, or any that is free.", min=0, max=65535)
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="SLM_JUDGE_API_KEY",
            help="Better in the variable: others see options.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model.")
    ] = None,
    quantization: Annotated[str | None, typer.Option(help="GGUF file to use, e.g. Q8_0.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="A GGUF LoRA; the model is then its base.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps (transformers).")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or auto (transformers).")
    ] = None,
    compile_layers: Annotated[
        bool, typer.Option("--compile", help="Faster on a GPU once it is compiled (transformers).")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads (gguf).", min=1)] = None,
    exact: Annotated[
        bool, typer.Option(help="Each row by itself: probabilities to the last bit.")
    ] = False,
    max_memory: Annotated[
        float | None, typer.Option(help="GiB for weights and cache (gguf).", min=0.0)
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A further name under which it is asked for, as by a proxy."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Of a row, the rubric included.", min=1)] = 8192,
    max_rows: Annotated[int, typer.Option(help="Rows of a request.", min=1)] = 1000,
    max_body: Annotated[int, typer.Option(help="MiB of a request.", min=1, max=1024)] = 8,
    batch_rows: Annotated[
        int | None,
        typer.Option(help="Rows computed together; by default 32, on a GPU 512.", min=1),
    ] = None,
) -> None:
    """Answer POST /v1/systemone and /v1/annotate for many clients at once."""
    from .serve import serve as server
    from .serve.batches import Limits

    settings = server.Settings(
        model, revision,
        {"quantization": quantization, "adapter": adapter, "device": device, "dtype": dtype,
         "compile": compile_layers, "n_threads": threads, "exact": exact, "max_memory": max_memory},
        host, port, key, allowed_host or (), Limits(max_body * 2**20, max_rows, max_tokens),
        batch_rows,
    )  # fmt: skip
    server.serve(settings)


@app.command("export-predictions")
def export_predictions(
    table: Annotated[str, typer.Argument(help="Table that `slm-judge annotate` wrote.")],
    rubric: Annotated[Path, typer.Option(help="YAML file of the rubric.")],
    to: Annotated[str, typer.Option(help="label-studio or argilla.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    prefix: Annotated[str, typer.Option(help="Of the judge's columns.")] = "",
    item_id: ItemColumn = ITEM_ID,
    overwrite: Overwrite = False,
) -> None:
    """Write a judge's labels as pre-annotations, for people to correct in their tool."""
    from .data.preannotate import export_predictions as write
    from .rubric import Rubric

    lines = write(table, Rubric.from_file(rubric), to, output, prefix, item_id, overwrite)
    say(Console(), lines, "")


def _choose(option: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise JudgeError(f"{option} is {', '.join(allowed[:-1])} or {allowed[-1]}, not {value!r}.")


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise JudgeError(f"{option} is numbers with commas between them, not {text!r}.") from None


def _whole_numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise JudgeError(f"{option} is whole numbers with commas between, not {wrong[0]!r}.")
    return [*map(int, parts)]


def _columns(pairs: list[str]) -> dict[str, str]:
    columns = dict(pair.partition("=")[::2] for pair in pairs)
    if "" in columns or "" in columns.values() or len(columns) < len(pairs):
        raise JudgeError(f"--column is field=column, once a field, got {', '.join(pairs)}.")
    return columns


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line.

    Exit codes: 1 verification failed, or drift; 2 something the user can mend; 3 rows were left
    out; 130 and 143 interrupted and terminated.
    """
    for number in _STOPS:
        signal.signal(number, _stop)
    atexit.register(_hear_no_more)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Progress of our own replaces that of the libraries; their warnings still show.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # It recommends a kernel that would be downloaded and run.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        app()
    except VerificationError as error:
        _fail(str(error), 1)
    except JudgeError as error:
        _fail(str(error), 2)
    except _Stopped as stopped:
        resumed = "The same command goes on where it stopped (train with --resume)."
        advice = " ".join(getattr(stopped, "__notes__", [resumed]))
        _fail(f"{_STOPS[stopped.number]}. {advice}", 128 + stopped.number)
    except Exception as error:
        if (message := system_message(error)) is None:
            raise
        _fail(message, 2)


_STOPS = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}


class _Stopped(BaseException):
    """A signal that ends work in good order; typer would swallow a `KeyboardInterrupt`."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number


def _stop(number: int, frame: object) -> None:
    """Put down what is at hand; a second signal ends at once, before C code is torn down."""
    for each in _STOPS:
        signal.signal(each, lambda again, _: os._exit(128 + again))
    raise _Stopped(signal.Signals(number))


def _hear_no_more() -> None:
    """Next, Python puts its handlers down, and a signal would be the process's end and its code."""
    for each in _STOPS:
        signal.signal(each, signal.SIG_IGN)


def _fail(message: str, code: int) -> None:
    say(Console(stderr=True), [message], "error: ", "red")
    sys.exit(code)

"""The report: from tables to a page, with whatever can be computed."""

import io
import json
import re
import shutil
import subprocess
import time

import evaluate as evaluate_package
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from slm_judge.export.push import Repository, plan_table
from slm_judge.model_card.page import bias_sentences, table, whose, write

from slm_judge import Rubric
from slm_judge.agreement.alpha import annotators_alpha, judge_alpha
from slm_judge.agreement.bias import BEYOND, SHIFT
from slm_judge.agreement.bootstrap import Interval
from slm_judge.cli import main
from slm_judge.data.item import Item
from slm_judge.data.predictions import Answers
from slm_judge.data.read import Annotations
from slm_judge.errors import DataError, JudgeError
from slm_judge.evaluation.baselines import Scores, results_table
from slm_judge.evaluation.dimension import Groups, Settings, evaluate_dimension
from slm_judge.evaluation.evaluate import add_columns, evaluate, find, of_files
from slm_judge.evaluation.metrics import metric_path
from slm_judge.recipe import Recipe
from slm_judge.screen import say

RUBRIC = {
    "name": "r",
    "instructions": "Rate it.",
    "fields": ["text"],
    "dimensions": [
        {"name": "grade", "type": "score", "instructions": "How good?", "options": [1, 2, 3, 4]},
        {"name": "kind", "type": "choice", "instructions": "What?", "options": ["a", "b", "c"]},
    ],
}


@pytest.fixture
def rubric():
    return Rubric.model_validate(RUBRIC)


@pytest.fixture
def rubric_file(tmp_path):
    path = tmp_path / "rubric.yaml"
    path.write_text(json.dumps(RUBRIC))  # JSON is YAML
    return path


def tables(folder, n=120, annotators=("ann", "bob", "cy"), noise=0.2, seed=0):
    """Annotations (long) and predictions with probabilities, as files."""
    rng = np.random.default_rng(seed)
    grades, kinds = rng.integers(1, 5, n), np.array(["a", "b", "c"])[rng.integers(0, 3, n)]
    rows = [
        {
            "item_id": f"i{i}",
            "annotator_id": name,
            "text": f"text {i} <script>alert(1)</script> " + "word " * int(rng.integers(1, 40)),
            "grade": int(np.clip(grades[i] + (rng.random() < noise) * rng.choice([-1, 1]), 1, 4)),
            "kind": kinds[i] if rng.random() > noise else rng.choice(["a", "b", "c"]),
            "source": "xyz"[i % 3],
        }
        for i in range(n)
        for name in annotators
    ]
    annotations = folder / "annotations.csv"
    pd.DataFrame(rows).to_csv(annotations, index=False)
    predictions = folder / "judge.jsonl"
    with predictions.open("w") as file:
        for i in range(n):
            sure = rng.uniform(0.4, 0.95)
            kind = kinds[i] if rng.random() < sure else "a"
            line = {
                "item_id": f"i{i}",
                "grade": int(grades[i]),
                "kind": kind,
                "grade_probabilities": [0.9 if k + 1 == grades[i] else 0.1 / 3 for k in range(4)],
                "kind_probabilities": [sure if k == kind else (1 - sure) / 2 for k in "abc"],
            }
            file.write(json.dumps(line) + "\n")
    return annotations, predictions


def run_files(folder, rubric, **options):
    annotations, predictions = tables(folder)
    return of_files(
        {"judge": str(predictions)}, str(annotations), rubric, annotator="annotator_id", **options
    )


def test_the_report_says_what_the_functions_say(tmp_path, rubric):
    evaluation = run_files(tmp_path, rubric, groups=["source"])
    report = evaluate(evaluation)
    assert report["items"] == 120
    grade = report["dimensions"]["grade"]
    votes = [list(item.votes["grade"].values()) for item in evaluation.annotations.items]
    labels = evaluation.systems["judge"]["grade"].labels.tolist()
    dimension = rubric.dimension("grade")
    assert grade["humans"]["alpha"]["estimate"] == pytest.approx(annotators_alpha(votes, dimension))
    system = grade["systems"]["judge"]
    assert system["alpha"]["estimate"] == pytest.approx(judge_alpha(labels, votes, dimension))
    assert system["alpha"]["low"] < system["alpha"]["estimate"] < system["alpha"]["high"]
    assert system["against_aggregate"]["alpha"]["estimate"] > system["alpha"]["estimate"]
    assert system["alpha_as_one_more"]["estimate"] > grade["humans"]["alpha"]["estimate"]
    assert system["alternative_annotator_test"]["passed"]
    assert {p["attribute"] for p in grade["probes"]} == {"source", "length of the text"}
    assert all(p["p_adjusted"] >= p["p_value"] for p in grade["probes"])
    assert {p["measure"] for p in report["dimensions"]["kind"]["probes"]} == {BEYOND}
    # Without the probability column there is no calibration; with it there is.
    assert system["calibration"]["brier_score"] > 0
    for example in report["dimensions"]["kind"]["disagreements"]:
        assert example["annotators"].count(example["judge"]) <= 1


def test_one_page_without_other_files_and_escaped(tmp_path, rubric):
    report = evaluate(run_files(tmp_path, rubric))
    page = write(report, tmp_path / "report").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert 'src="http' not in page
    assert page.count("data:image/svg+xml;base64,") == 6
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == json.loads(
        json.dumps(report)
    )
    names = {path.name for path in (tmp_path / "report" / "figures").iterdir()}
    assert {"alpha.png", "alpha.svg", "confusion-kind.png", "risk-coverage.svg"} <= names
    first = (tmp_path / "report" / "figures" / "alpha.svg").read_bytes()
    write(report, tmp_path / "again")
    assert (tmp_path / "again" / "figures" / "alpha.svg").read_bytes() == first


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_browser(tmp_path, rubric, width):
    """A real browser lays the page out; nothing is wider than the window, and no table scrolls."""
    annotations, predictions = tables(tmp_path)
    names = (
        "my_fine_tuned_system_with_a_long_name_that_ends_in_v2",
        "Q4_K_M",
        "a-system-whose-name-has-no-space-in-it-at-all-and-goes-on",
        "adapter",
    )
    systems = dict.fromkeys(names, str(predictions))
    evaluation = of_files(
        systems, str(annotations), rubric, annotator="annotator_id", groups=["source"]
    )
    page = write(evaluate(evaluation), tmp_path / "report")
    # The page's policy forbids scripts, so a frame around it measures.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="file://{page}" style="width:{width}px;height:800px;border:0"></iframe>'
        "<script>onload=()=>{const d=document.getElementById('f').contentDocument.documentElement;"
        "document.title=Math.max(d.scrollWidth,...[...d.querySelectorAll('.scroll')].map("
        "e=>e.scrollWidth>e.clientWidth?9999:0))+' '"
        "+[...d.querySelectorAll('img')].every(i=>i.naturalWidth>0)}"
        "</script>"
    )
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--allow-file-access-from-files", f"--user-data-dir={tmp_path}/profile",
        "--virtual-time-budget=5000", "--dump-dom", f"file://{frame}",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    title = dom.partition("<title>")[2].partition("</title>")[0]
    needed, loaded = title.split()
    assert int(needed) <= width
    assert loaded == "true"


def test_the_command_line(tmp_path, rubric_file, capsys, monkeypatch):
    annotations, predictions = tables(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["slm-judge", "evaluate", "--predictions", f"mine={predictions}", "--annotations",
                 str(annotations), "--rubric", str(rubric_file), "--annotator", "annotator_id",
                 "--group", "source", "--expertise", "crowd", "--output", "out"]  # fmt: skip
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    printed = capsys.readouterr().out
    assert "mine" in printed
    assert "out/report.html" in printed
    assert json.loads((tmp_path / "out" / "report.json").read_text())["settings"]["epsilon"] == 0.1


def test_what_is_not_known_is_not_said(tmp_path, rubric):
    """Nobody knows what predictions from anywhere learned from; a run's judge saw no test item."""
    evaluation = run_files(tmp_path, rubric)
    page = write(evaluate(evaluation), tmp_path / "r").read_text()
    assert "the files do not say whether the judge learned from them" in page
    evaluation.held_out = True
    page = write(evaluate(evaluation), tmp_path / "r").read_text()
    assert "that the judge did not learn from" in page


def test_the_page_says_who_agrees_how_much(tmp_path, rubric):
    report = evaluate(run_files(tmp_path, rubric))
    page = " ".join(write(report, tmp_path / "r").read_text().split())
    grade = report["dimensions"]["grade"]
    assert "an annotator, against the rest" in page
    assert "the aggregate of the others" in page
    assert "always one option, at best" in page
    assert grade["systems"]["judge"]["minus_annotators"]["told"] in page
    assert grade["systems"]["judge"]["alternative_annotator_test"]["verdict"] in page
    assert "Each annotator (3)" in page
    assert "human ceiling" not in page
    rows = [name for name, _, _ in table(report).rows]
    assert sum("always one option" in row for row in rows) == 2
    assert sum("the aggregate of the others" in row for row in rows) == 2


def test_what_must_be_named(tmp_path):
    options = dict.fromkeys(("predictions", "annotations", "rubric", "output"))
    with pytest.raises(JudgeError, match="--predictions, --annotations, --rubric must be named"):
        find(None, **options)
    with pytest.raises(JudgeError, match="not both"):
        find(tmp_path, **options | {"annotations": "a.csv"})


# --- groups, annotators and bias ---


def simulated(folder, size=30, users=20, worse=0.0, seed=0):
    """12 sources, and users who write in one of them; 8 annotators, half of them women."""
    rng = np.random.default_rng(seed)
    n = 12 * size
    kinds, who = rng.integers(0, 3, n), np.argsort(rng.random((n, 8)), axis=1)[:, :3]
    rows = [
        {
            "item_id": f"i{i}",
            "annotator_id": f"p{m}",
            "kind": "abc"[(kinds[i] + (rng.random() < 0.15)) % 3],
            "source": f"s{i % 12:02}",
            "user": f"u{i % 12}-{i // 12 % users}",
            "big": f"b{i % 4}",
            "gender": "wm"[m % 2],
            "mood": rng.choice(["good", "bad"]),
        }
        for i in range(n)
        for m in who[i]
    ]
    right = np.where(np.arange(n) % 12 == 0, 0.9 - worse, 0.9)
    said = [
        "abc"[k if ok else (k + 1) % 3] for k, ok in zip(kinds, rng.random(n) < right, strict=True)
    ]
    return files(folder, rows, {"item_id": [f"i{i}" for i in range(n)], "kind": said})


def simulated_report(folder, rubric, settings=None, groups=("source",), cluster=None, **world):
    found = of_files(
        *simulated(folder, **world),
        rubric.model_copy(update={"dimensions": rubric.dimensions[1:]}),
        annotator="annotator_id",
        groups=groups,
        settings=settings or Settings(resamples=100),
        cluster=cluster,
    )
    return evaluate(found)


def test_a_report_without_bias_says_so(tmp_path, rubric):
    report = simulated_report(tmp_path, rubric)
    (said,) = bias_sentences(report)
    assert said.startswith("Comparisons of groups: 12. None found a difference beyond chance")
    page = write(report, tmp_path / "r").read_text()
    assert said in page
    assert "new items like these 360, judged by these annotators" in page


def test_a_report_with_a_bias_says_where(tmp_path, rubric):
    report = simulated_report(tmp_path, rubric, worse=0.6)
    (said,) = bias_sentences(report)
    assert "kind: on source: s00, judge agrees with annotators less than they do with" in said
    page = write(report, tmp_path / "r").read_text()
    assert "source: s00" in page
    assert "source: s01" not in page  # what was found is shown


def test_a_report_says_nothing_where_nothing_was_compared(tmp_path, rubric):
    report = simulated_report(tmp_path, rubric, groups=())
    assert bias_sentences(report) == [
        "No groups of items were compared, so nothing is said about bias."
    ]
    assert "found a difference" not in write(report, tmp_path / "r").read_text()
    few = simulated_report(tmp_path, rubric, size=3)
    (said,) = bias_sentences(few)
    assert said.startswith("Not tested in every dimension: source, s00, s01, s02, s03, s04, ...")


def test_groups_of_items_are_drawn_whole(tmp_path, rubric):
    items = simulated_report(tmp_path, rubric)["dimensions"]["kind"]
    users = simulated_report(tmp_path, rubric, cluster="user", users=2)["dimensions"]["kind"]
    assert (items["sampling"]["drawn"], items["sampling"]["units"]) == ("items", 360)
    assert (users["sampling"]["drawn"], users["sampling"]["units"]) == ("groups", 24)
    assert users["sampling"]["text"] == (
        "Intervals speak about new groups like these 24, of 360 items, judged by these annotators."
    )
    assert users["systems"]["judge"]["alpha"]["low"] != items["systems"]["judge"]["alpha"]["low"]
    assert users["probes"] == []  # two users a source
    assert len(users["untested"]["source"]) == 12
    assert not any("Intervals rest" in note for note in users["notes"])
    few = simulated_report(tmp_path, rubric, cluster="big")["dimensions"]["kind"]
    assert any("Intervals rest on 4 groups alone, too few" in note for note in few["notes"])
    new = simulated_report(tmp_path, rubric, Settings(50, new_annotators=True))["dimensions"][
        "kind"
    ]
    assert "new annotators like these 8;" in new["sampling"]["text"]
    assert any("about new annotators rests on 8 alone" in note for note in new["notes"])


def test_one_group_is_no_group_like_these_1():
    dimension = Rubric.model_validate({"name": "r", "instructions": "i", "fields": ["text"], "dimensions": [
        {"name": "d", "type": "noul", "instructions": "q"}]}).dimensions[0]  # fmt: skip
    votes = [{"a": k % 2, "b": k % 3 % 2} for k in range(20)]
    given = {"judge": Answers(np.array([k % 2 for k in range(20)]))}
    found = evaluate_dimension(dimension, votes, given, Groups(["one"] * 20), Settings(50))
    assert found["sampling"]["text"].startswith(
        "Intervals speak about new groups like this one, of"
    )
    assert "rest on 1 group alone" in found["sampling"]["few"]


def test_a_column_of_annotators_is_probed_over_annotations(tmp_path, rubric):
    report = simulated_report(tmp_path, rubric, groups=("gender", "mood"), size=10)
    assert any("mood differs between rows of one item" in note for note in report["notes"])
    assert report["dimensions"]["kind"]["untested"] == {"gender": ["m", "w"]}  # four a side
    (said,) = bias_sentences(report)
    assert said.startswith("Not tested in every dimension: gender, m, w. Both sides need 10 values")


def probe_of(**told):
    interval = {"estimate": 0.3, "low": 0.1, "high": 0.5}
    return {"attribute": "gender", "group": "f", "others": "m", "measure": SHIFT, "of": "items",
            "difference": interval, "p_adjusted": 0.01, "verdict": "difference", **told}  # fmt: skip


def said_of(**told):
    dimensions = {"grade": {"probes": [probe_of(**told)], "untested": {}}}
    (said,) = bias_sentences({"systems": ["judge"], "dimensions": dimensions})
    return said


def test_a_difference_of_annotators_is_said_to_be_theirs():
    said = said_of(of="annotations")  # the judge is above women by more
    assert said.startswith("grade: annotators of gender f rate lower than m (difference")
    assert said.endswith("That is of the annotators, and shows no bias of judge.")
    assert "f agree more with judge" in said_of(of="annotations", measure=BEYOND)
    assert whose(probe_of(of="annotations")) == "the annotators"


def test_a_shift_that_may_be_of_either_is_not_claimed():
    said = said_of()
    assert said.startswith("Comparisons in which judge rates higher against annotators on one")
    assert "The files cannot say whether it is the judge or the annotators" in said
    assert whose(probe_of()) == "not known whose"
    assert "on gender: f, judge rates higher against" in said_of(verdict="bias")


def test_columns_of_a_run_are_of_items_or_annotators(tmp_path, rubric):
    _, location = simulated(tmp_path, size=5)
    data = {"train": location, "annotator": "annotator_id", "columns": {"grade": "level"}}
    recipe = Recipe.model_validate({"name": "r", "rubric": "r.yaml", "data": data})
    kept = Annotations([Item(name, {}, {}, name) for name in ("i13", "i2", "elsewhere")])
    add_columns(kept, recipe, rubric, ["source", "gender", "mood"])
    assert kept.columns == {"source": ["s01", "s02", ""]}
    assert kept.of_annotators["gender"]["p3"] == "m"
    assert any("mood differs" in note for note in kept.notes)


def test_intervals_about_new_annotators(tmp_path, rubric):
    settings = Settings(resamples=200, new_annotators=True)
    both = simulated_report(tmp_path, rubric, settings)["dimensions"]["kind"]
    items = simulated_report(tmp_path, rubric)["dimensions"]["kind"]
    assert "and about new annotators like these 8;" in both["sampling"]["text"]
    for wide, narrow in (
        (both["humans"]["alpha"], items["humans"]["alpha"]),
        (both["systems"]["judge"]["alpha"], items["systems"]["judge"]["alpha"]),
    ):
        assert wide["estimate"] == pytest.approx(narrow["estimate"])
        assert wide["high"] - wide["low"] > narrow["high"] - narrow["low"]
    annotations, predictions = tables(tmp_path, n=20)
    found = of_files(
        {"j": str(predictions)}, str(annotations), rubric, settings=Settings(new_annotators=True)
    )
    with pytest.raises(DataError, match="need to know who annotated"):
        evaluate(found)


def test_the_command_line_takes_groups(tmp_path, rubric_file, monkeypatch, capsys):
    annotations, predictions = tables(tmp_path, n=60)
    monkeypatch.chdir(tmp_path)
    arguments = ["slm-judge", "evaluate", "--predictions", str(predictions), "--annotations",
                 str(annotations), "--rubric", str(rubric_file), "--annotator", "annotator_id",
                 "--resamples", "100", "--output", "out"]  # fmt: skip
    for more in (["--cluster", "source"], ["--new-annotators"]):
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code
    sampling = json.loads((tmp_path / "out" / "report.json").read_text())["dimensions"]["kind"]
    assert sampling["sampling"]["annotators"] == 3
    monkeypatch.setattr("sys.argv", [*arguments, "--cluster", "nothing"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    assert "lacks the columns nothing" in " ".join(capsys.readouterr().err.split())


def test_a_shift_is_that_of_the_pairs(tmp_path, rubric):
    """An annotator in the place of the judge: about 0, and nothing is said against the aggregate."""
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 5, 400)
    said = np.clip(truth[:, None] + rng.integers(-1, 2, (400, 5)), 1, 4)
    rows = [
        {"item_id": i, "annotator_id": m, "grade": said[i, m]} for i in range(400) for m in range(4)
    ]
    given = files(tmp_path, rows, {"item_id": range(400), "grade": said[:, 4]})
    report = evaluate(of_files(*given, rubric, annotator="annotator_id"))
    system = report["dimensions"]["grade"]["systems"]["judge"]
    assert system["mean_shift"]["low"] < 0 < system["mean_shift"]["high"]
    assert abs(system["mean_shift"]["estimate"]) < 0.05
    assert "mean_shift" not in system["against_aggregate"]
    for name in ("gwet_ac", "icc", "spearman", "kendall"):
        assert system[name]["low"] < system[name]["estimate"] < system[name]["high"]
    assert system["icc"]["estimate"] == pytest.approx(
        report["dimensions"]["grade"]["humans"]["icc"]["estimate"], abs=0.06
    )
    for option in system["options"]:
        assert option["recall"]["low"] < option["recall"]["estimate"] < option["recall"]["high"]
    page = write(report, tmp_path / "r").read_text()
    assert page.count("mean shift, levels") == 1
    assert "AC2 (quadratic)" in page


# --- bad input: what is missing, and what can still be computed ---


def files(folder, annotations, predictions):
    pd.DataFrame(annotations).to_csv(folder / "a.csv", index=False)
    pd.DataFrame(predictions).to_csv(folder / "p.csv", index=False)
    return {"judge": str(folder / "p.csv")}, str(folder / "a.csv")


def test_one_annotator(tmp_path, rubric):
    _, predictions = tables(tmp_path)
    annotations, _ = tables(tmp_path, annotators=("ann",))
    evaluation = of_files(
        {"j": str(predictions)}, str(annotations), rubric, annotator="annotator_id"
    )
    report = evaluate(evaluation)
    grade = report["dimensions"]["grade"]
    assert grade["humans"] is None
    assert "No item was annotated twice" in grade["notes"][0]
    assert grade["systems"]["j"]["minus_annotators"] is None
    assert grade["systems"]["j"]["alpha"]["estimate"] > 0.5
    assert grade["systems"]["j"]["alternative_annotator_test"]["winning_rate"] is None
    page = write(report, tmp_path / "r").read_text()
    assert "No item was annotated twice" in page
    assert "minus-annotators" not in {path.stem for path in (tmp_path / "r" / "figures").iterdir()}


def test_items_of_another_data_set(tmp_path, rubric):
    given = files(
        tmp_path,
        {"item_id": ["a", "b"], "grade": [1, 2], "kind": ["a", "b"]},
        {"item_id": ["x", "y"], "grade": [1, 2], "kind": ["a", "b"]},
    )
    with pytest.raises(DataError, match="has no predictions for the annotated items"):
        of_files(*given, rubric)


def test_partial_overlap_and_unknown_labels_are_counted(tmp_path, rubric):
    given = files(
        tmp_path,
        {"item_id": list("abcd"), "grade": [1, 2, 3, 9], "kind": ["a", "b", "", "c"]},
        {"item_id": list("abcx"), "grade": [1, 2, 7, 1], "kind": ["a", "b", "c", "a"]},
    )
    report = evaluate(of_files(*given, rubric))
    notes = " ".join(report["notes"])
    assert "left out 1 x labels of grade outside the rubric, e.g. a.csv, line 5: '9'" in notes
    assert "lacks 1 of 4 items (e.g. d)" in notes
    assert "has 1 items that were not asked about" in notes
    assert "left out 1 x labels of grade that are empty or not in the rubric" in notes
    assert report["items"] == 2
    assert report["dimensions"]["grade"]["systems"]["judge"]["accuracy"]["estimate"] == 1.0


def test_nothing_is_said_about_annotators_whom_nobody_named(tmp_path, rubric):
    annotations, predictions = tables(tmp_path)
    named = evaluate(run_files(tmp_path, rubric))["dimensions"]["kind"]
    pd.read_csv(annotations).sample(frac=1, random_state=1).to_csv(annotations, index=False)
    report = evaluate(of_files({"judge": str(predictions)}, str(annotations), rubric))
    kind = report["dimensions"]["kind"]
    assert kind["annotators"] is None
    assert kind["ratings"] == named["ratings"]
    assert kind["humans"]["alpha"]["estimate"] == named["humans"]["alpha"]["estimate"]
    test = kind["systems"]["judge"]["alternative_annotator_test"]
    assert test["annotators"] == []
    assert not test["passed"]
    assert any("Nobody said who made" in note for note in kind["notes"])
    assert any(" annotator_id may name them" in note for note in report["notes"])
    page = write(report, tmp_path / "r").read_text()
    assert "no column names who made them" in page
    assert "Each annotator" not in page
    assert "an annotation, against the item&#39;s others" in page
    assert "it holds against" not in page


# --- tables for a terminal and for a file ---

LONG = "TF-IDF + logistic regression, balanced, of a system with a very long name indeed, v2"


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_are_legible_at_80_columns(tmp_path, rubric, terminal):
    annotations, predictions = tables(tmp_path, n=40)
    report = evaluate(
        of_files(
            {LONG: str(predictions), "short": str(predictions)}, str(annotations), rubric,
            annotator="annotator_id",
        )
    )  # fmt: skip
    scores = Scores(*[Interval(-0.123, -0.234, -0.012)] * 3)
    sheets = [
        table(report),
        results_table(rubric.dimension("kind"), {LONG: scores, "short": scores}, 40),
        plan_table([Repository(f"me/{'long-' * 20}name", {"a-file.gguf": b"x"})]),
    ]
    for sheet in sheets:
        output = io.StringIO()
        sheet.show(Console(file=output, width=80, force_terminal=terminal))
        plain = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())
        assert (plain != output.getvalue()) == terminal
        assert not set("│┃─━┏…") & set(plain)
        long = [line for line in plain.splitlines() if len(line) > 80]
        assert all(len(line.split()) == 1 for line in long), long  # a name without a space
        for name, figures, _ in sheet.rows:
            assert all(word in plain.split() for word in name.split())
            assert all(figure in plain for figure in figures)


@pytest.mark.parametrize("terminal", [True, False])
def test_notes_are_printed_as_they_are(terminal):
    path = f"/{'folder/' * 20}x.csv"
    texts = [f"{path} has [bold]no[/bold] [/b] label :smile: of the rubric", "first\n  second"]
    output = io.StringIO()
    say(Console(file=output, width=80, force_terminal=terminal), texts)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue()).splitlines()
    assert " ".join(" ".join(lines).split()) == " ".join(f"note: {' note: '.join(texts)}".split())
    assert path in lines
    assert lines[-2:] == ["note: first", "  second"]
    assert all(len(line) <= 80 for line in lines if line != path)


def test_a_dimension_without_annotations_is_left_out(tmp_path, rubric):
    given = files(
        tmp_path,
        {"item_id": ["a", "b"], "grade": [1, 2]},
        {"item_id": ["a", "b"], "grade": [1, 2]},
    )
    report = evaluate(of_files(*given, rubric))
    assert list(report["dimensions"]) == ["grade"]
    assert "lacks kind: left out" in report["notes"][0]


def test_one_category_only(tmp_path, rubric):
    n = 30
    given = files(
        tmp_path,
        {"item_id": range(n), "grade": [2] * n, "kind": ["a"] * n},
        {"item_id": range(n), "grade": [2] * n, "kind": ["a"] * 29 + ["b"]},
    )
    report = evaluate(of_files(*given, rubric))
    grade, kind = (report["dimensions"][d] for d in ("grade", "kind"))
    assert any("All annotations are 2" in note for note in grade["notes"])
    assert grade["systems"]["judge"]["alpha"]["estimate"] == 1.0
    assert kind["systems"]["judge"]["alpha"]["estimate"] <= 0
    assert grade["systems"]["judge"]["spearman"]["estimate"] is None
    write(report, tmp_path / "report")


def test_no_annotation_at_all(rubric):
    report = evaluate_dimension(
        rubric.dimension("grade"), [{}, {}], {"j": Answers(np.array([0, 1]))}
    )
    assert report["systems"] == {}
    assert "nothing can be computed" in report["notes"][0]


def test_probabilities_of_another_length(tmp_path, rubric):
    annotations, predictions = tables(tmp_path, n=20)
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    lines[3]["kind_probabilities"] = [1.0]
    predictions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="kind_probabilities must be a list of 3"):
        of_files({"j": str(predictions)}, str(annotations), rubric, annotator="annotator_id")


def test_systems_are_compared_on_common_items_with_the_first(tmp_path, rubric):
    annotations, predictions = tables(tmp_path)
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    for line in lines:
        line["kind"] = "a"
    worse = tmp_path / "worse.jsonl"
    worse.write_text("".join(json.dumps(line) + "\n" for line in lines[:100]))
    report = evaluate(
        of_files(
            {"judge": str(predictions), "worse": str(worse)},
            str(annotations),
            rubric,
            annotator="annotator_id",
        )
    )
    assert report["items"] == 100
    kind = report["dimensions"]["kind"]["systems"]
    assert "against_reference" not in kind["judge"]
    assert kind["worse"]["against_reference"]["verdict"] == "inferior"
    grade = report["dimensions"]["grade"]["systems"]["worse"]["against_reference"]
    # The same of all 100 items, of which in others a few may differ; enough for a larger margin.
    assert grade["estimate"] == 0
    assert -0.1 < grade["low"] < -0.05
    assert grade["verdict"] == "not decided"


# --- metrics for `evaluate` ---


def test_metrics_load_from_their_folder_offline(tmp_path, monkeypatch, rubric):
    alpha = evaluate_package.load(metric_path("krippendorff_alpha"))
    votes = [[0, 0, 1], [1, 2], [3], [2, 2]]
    found = alpha.compute(
        predictions=[0, 1, 3, 2], references=votes, level_of_measurement="ordinal"
    )
    expected = judge_alpha([0, 1, 3, 2], votes, rubric.dimension("grade"))
    assert found["krippendorff_alpha"] == pytest.approx(expected)
    assert alpha.compute(predictions=["a", "b"], references=["a", "b"]) == {
        "krippendorff_alpha": 1.0
    }
    both = evaluate_package.combine([alpha, alpha])
    assert len(both.compute(predictions=[1, 2], references=[1, 2])) == 2
    # A copy of the folder works as well: nothing in it points outside of the package.
    copied = shutil.copytree(
        metric_path("alternative_annotator_test"), tmp_path / "alternative_annotator_test"
    )
    test = evaluate_package.load(str(copied))
    nan = float("nan")
    found = test.compute(predictions=[0, 1] * 20, references=[[0, 0, nan], [1, 1, 0]] * 20)
    assert found == {
        "winning_rate": 1.0, "winning_rate_t_test": 1.0, "advantage_probability": 1.0, "passed": True,
    }  # fmt: skip
    same = test.compute(predictions=[0] * 40, references=[[0, 0, 0]] * 36 + [[1, 1, 0]] * 4)
    assert same["winning_rate"] == 1.0
    assert not same["passed"]  # it always says the same
    with pytest.raises(JudgeError, match="There is no metric x"):
        metric_path("x")


# --- speed ---


def test_a_large_report_is_made(tmp_path):
    """5,000 items, 6 dimensions, 5 annotators; the time is printed, not asserted."""
    rng = np.random.default_rng(0)
    names = [f"d{k}" for k in range(6)]
    large = Rubric.model_validate(
        RUBRIC
        | {
            "dimensions": [
                {"name": n, "type": "score", "instructions": "?", "options": [-2, -1, 0, 1, 2]}
                for n in names
            ]
        }
    )
    truth = rng.integers(-2, 3, (5000, 6))
    rows = []
    for m in range(5):
        said = np.clip(truth + rng.integers(-1, 2, truth.shape), -2, 2)
        table = pd.DataFrame(said, columns=names)
        rows.append(table.assign(item_id=range(5000), annotator_id=m, text="some words here"))
    pd.concat(rows).to_parquet(tmp_path / "a.parquet")
    judged = pd.DataFrame(truth, columns=names).assign(item_id=range(5000))
    for name in names:
        judged[f"{name}_probabilities"] = np.eye(5)[truth[:, names.index(name)] + 2].tolist()
    judged.to_parquet(tmp_path / "p.parquet")
    started = time.monotonic()
    evaluation = of_files(
        {"judge": str(tmp_path / "p.parquet")}, str(tmp_path / "a.parquet"), large,
        annotator="annotator_id",
    )  # fmt: skip
    report = evaluate(evaluation)
    write(report, tmp_path / "report")
    print(f"{time.monotonic() - started:.1f} s")
    assert all(
        d["systems"]["judge"]["alpha"]["estimate"] > 0.5 for d in report["dimensions"].values()
    )

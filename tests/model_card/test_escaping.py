"""Labels, instructions, groups and names are shown as they are, wherever they are shown."""

import io
import json
import re
import subprocess
import sys
import warnings
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from matplotlib.text import Text
from rich.console import Console
from slm_judge.model_card import figures
from slm_judge.model_card.card import render_card
from slm_judge.model_card.page import table, write
from slm_judge.training.facts import print_settings

from slm_judge import Rubric
from slm_judge.evaluation.evaluate import Settings, evaluate, of_files
from slm_judge.progress import progress_bar
from slm_judge.recipe import Recipe
from slm_judge.screen import Sheet, say
from tests.conftest import LIMIT

HOSTILE = [
    "$10 or $x_{ and \\frac{",
    "_hidden_ *b* **c** ~~d~~",
    "a|b \\| c",
    "`` ` ```",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1)) [y]: z [^1]",
    "![i](http://127.0.0.1/y.png)",
    "# head",
    "- item",
    "1. one",
    "> quote",
    "---",
    "===",
    "&lt;b&gt; &amp;",
    "two\nlines | of\n---\n# text",
    "```\nfence",
    "{{ 7 * 7 }}{% raw %}",
    "[/red][bold] :bomb:",
    "💥 喜",
    "</title></style><svg onload=x>",
    "\\",
    "W" * 300,
    "'\" onload='x' --> ]]>",
    "+ plus",
]
# As many words and lines, so that the same groups by length are found.
PLAIN = [re.sub(r"\S", chr(ord("a") + k), word) for k, word in enumerate(HOSTILE)]


def files(folder, words):
    """A rubric, and tables in which everything that is free is one of `words`."""
    options = {word: words[-k] for k, word in enumerate(words, start=1)}
    rubric = Rubric.model_validate(
        {
            "name": "r",
            "instructions": "\n".join(words),
            "fields": ["text"],
            "dimensions": [
                {"name": "kind_", "type": "choice", "instructions": words[4], "options": options},
                {"name": "n" * 200, "type": "score", "instructions": words[8], "options": [1, 2]},
            ],
        }
    )
    rows = [
        {
            "item_id": f"{words[i % len(words)]} {i}",
            "annotator": f"{words[k]}",
            "text": words[(i + 1) % len(words)],
            "kind_": words[i % len(words)],
            "n" * 200: 1 + i % 2,
            words[5]: words[i % 7],
        }
        for i in range(8 * len(words))
        for k in range(2)
    ]
    sure = {
        "kind__probabilities": [0.5, *[0.5 / (len(words) - 1)] * (len(words) - 1)],
        f"{'n' * 200}_probabilities": [0.6, 0.4],
    }
    said = [row | {"kind_": words[0], "n" * 200: 1} | sure for row in rows[::2]]
    for name, lines in (("annotations", rows), ("judge", said)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return rubric


def report_on(folder, words):
    """The real report; every group is shown as one with a bias."""
    folder.mkdir()
    rubric = files(folder, words)
    judge, systems = str(folder / "judge.jsonl"), (words[0], words[1], words[2], "merged")
    found = of_files(
        dict.fromkeys(systems, judge),
        str(folder / "annotations.jsonl"),
        rubric,
        annotator="annotator",
        groups=[words[5]],
        settings=Settings(resamples=20),
    )
    report = evaluate(found)
    for dimension in report["dimensions"].values():
        for probe in dimension["probes"]:
            probe |= {"p_adjusted": 0.0, "verdict": "bias"}
    return rubric, report


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The same report twice: with words that mean nothing, and with hostile ones."""
    folder = tmp_path_factory.mktemp("reports")
    return {
        "plain": report_on(folder / "plain", PLAIN),
        "hostile": report_on(folder / "hostile", HOSTILE),
    }


def card_on(rubric, report, words, kind=""):
    artefacts = ("adapter", words[2])
    verified = {
        "notes": [words[6], words[15]],
        "undecided": [words[3], words[8]],
        "dimensions": {
            name: {
                "artefacts": {key: {} for key in artefacts},
                "majority": {"alpha": -0.1},
                "loss": {words[2]: {"estimate": 0.0, "low": -0.1, "high": 0.1}},
                "between": {f"adapter / {words[2]}": {"agreement": 0.9}},
            }
            for name in report["dimensions"]
        },
    }
    facts = {
        "items": {"train": 1, "validation": 1},
        "targets": "votes",
        "seconds": 1.0,
        "device": words[7],
        "energy_kwh": None,
        "sha256": {words[3]: "0" * 64},
        "versions": {"torch": "1.0"},
    }
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "rubric": f"{words[16]}.yaml",
            "data": {"train": f"{words[15]}.csv"},
            "card": {"license": words[15], "language": [words[12]], "intended_use": "As *I* say."},
        }
    )
    return recipe, render_card(
        kind, "me", recipe, rubric, facts, verified, report, {"Q8_0": words[7]}
    )


def parse(card):
    """Blocks, inline signs that are no text, the text, and the cells of tables."""
    body = card.split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    inline = [child for token in tokens for child in token.children or []]
    blocks = [(token.type, token.tag, token.level) for token in tokens]
    marks = Counter(child.type for child in inline if child.type not in ("text", "softbreak"))
    text = " ".join(map(shown, tokens))
    opened = pairwise(tokens)
    return blocks, marks, text, [shown(cell) for one, cell in opened if one.type == "td_open"]


def shown(token):
    """What a reader sees, with single spaces."""
    parts = ["\n" if c.type == "softbreak" else c.content for c in token.children or []]
    return " ".join("".join(parts).split())


def test_the_card_keeps_its_shape(reports):
    parsed = {}
    for name, words in (("plain", PLAIN), ("hostile", HOSTILE)):
        rubric, report = reports[name]
        parsed[name] = parse(card_on(rubric, report, words)[1])
    blocks, marks, text, cells = parsed["hostile"]
    assert blocks == parsed["plain"][0]
    assert marks == parsed["plain"][1]  # emphasis, code, links and images: ours alone
    assert "html_inline" not in marks
    assert "html_block" not in {kind for kind, *_ in blocks}
    words = [" ".join(word.split()) for word in HOSTILE]
    for word in words:  # as a value and as a description
        assert text.count(word) >= 2, word
    assert set(words[:3]) <= set(cells)  # the systems
    groups = {cell.rpartition(" (")[0] for cell in cells}
    assert {f"{words[5]}: {word}" for word in words[:7]} <= groups
    assert r"\$10 or \$x\_{" in card_on(*reports["hostile"], HOSTILE)[1]  # no formula on the Hub


def test_the_card_s_front_matter_cannot_be_left(reports):
    recipe, card = card_on(*reports["hostile"], HOSTILE)
    read = ModelCard(card)
    assert read.data.license == HOSTILE[15]
    assert read.data.language == [HOSTILE[12]]
    assert read.data.model_name == "r"
    assert read.text.lstrip().startswith("# r\n")
    fenced = [
        token.content
        for token in MarkdownIt("commonmark").parse(read.text)
        if token.type == "fence" and token.info == "yaml"
    ]
    assert [yaml.safe_load(text) for text in fenced] == [recipe.model_dump()]
    assert "As *I* say." in card  # of the recipe's card: Markdown of whoever publishes it


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = [], set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_the_page_keeps_its_shape_and_has_no_script(reports, tmp_path):
    parsed = {}
    for name, (_, report) in reports.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            page = write(report, tmp_path / name).read_text(encoding="utf-8")
        parsed[name] = Tags()
        parsed[name].feed(page)
    assert parsed["hostile"].tags == parsed["plain"].tags
    assert parsed["hostile"].attributes == parsed["plain"].attributes
    assert "script" not in parsed["hostile"].tags
    assert all(word in parsed["hostile"].text for word in HOSTILE)
    for drawing in (tmp_path / "hostile").rglob("*.svg"):
        tags = {element.tag for element in ElementTree.parse(drawing).iter()}
        assert not any("script" in tag or "foreignObject" in tag for tag in tags)


def test_figures_say_what_is_written(reports):
    """No formulas, no warnings, and a name that matplotlib would leave out of its legend."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = figures.draw(reports["hostile"][1])
        for figure in drawn.values():
            assert figures.save(figure, "png")
            assert not any(text.get_parse_math() for text in figure.findobj(Text))
    (legend,) = drawn["alpha"].legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == [
        "an annotator",
        "the others' aggregate",
        "$10 or $x_{ and \\frac{",
        "_hidden_ *b* **c** ~~d~~",
        "a|b \\| c",
        "merged",
    ]
    ticks = [text.get_text() for text in drawn["confusion-kind_"].axes[0].get_yticklabels()]
    assert ticks[4] == "<script>alert(1)<…"
    assert ticks[19] == "option 20"  # the font has no signs for its name
    assert all("\n" not in tick and len(tick) <= 18 for tick in ticks)


@pytest.mark.parametrize("options", [2, 40])
def test_figures_of_many_long_names_have_room(reports, options):
    report = json.loads(json.dumps(reports["plain"][1]))
    dimension = report["dimensions"]["kind_"]
    dimension["options"] = [f"{k}{'W' * 40}" for k in range(options)]
    for system in dimension["systems"].values():
        system["confusion"] = [[1] * options] * options
    report["systems"] = [f"{k}{'W' * 40}" for k in range(options // 2)]
    first = next(iter(dimension["systems"].values()))
    report["dimensions"] = {
        f"{'W' * 60}{k}": {**dimension, "systems": dict.fromkeys(report["systems"], first)}
        for k in range(3)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in figures.draw(report).values():
            assert figures.save(figure, "png")


# --- the terminal ---


def test_a_terminal_shows_texts_as_they_are(reports):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=400, color_system="truecolor")
    for word in HOSTILE:
        say(console, [word])
        with progress_bar(console=console) as bar:
            bar.advance(bar.add_task(word.replace("\n", " "), total=1))
    table(reports["hostile"][1]).show(console)
    recipe, _ = card_on(*reports["hostile"], HOSTILE)
    print_settings(recipe.model_copy(update={"output": "[/red] :bomb:"}), console)
    for word in HOSTILE:
        assert word.splitlines()[0] in shown.getvalue()
    assert "output = [/red] :bomb: (recipe)" in shown.getvalue()


def test_a_text_cannot_steer_the_terminal():
    """Escape sequences, bells and names that are no UTF-8 are shown, whatever the encoding is."""
    for encoding in ("utf-8", "ascii"):
        shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        console = Console(file=shown, width=80)
        say(console, ["a\x1b[2Jb\x07c\udcffd\x9b"])
        sheet = Sheet("\x1b]0;title\x07", ("n",))
        sheet.add("x\n\x1b[31my", "1")
        sheet.show(console)
        shown.flush()
        written = shown.buffer.getvalue()
        assert not set(written.decode(encoding)) & {"\x1b", "\x07", "\x9b", "\r"}
        assert len(written.splitlines()) == 4


def test_the_command_line_names_a_file_as_it_is_named(tmp_path):
    name = "[/red][bold] :bomb: $10.yaml"
    result = subprocess.run(
        [sys.executable, "-m", "slm_judge", "rubric", "check", name],
        capture_output=True, text=True, timeout=LIMIT, cwd=tmp_path, env={"COLUMNS": "400"},
    )  # fmt: skip
    assert result.returncode == 2
    assert name in result.stderr
    assert "Traceback" not in result.stderr

import csv

from samples.make import ANNOTATORS, write_sample
from tests.conftest import ROOT


def test_the_shipped_sample_is_what_the_generator_makes(tmp_path):
    write_sample(tmp_path)
    for name in ("support-messages.csv", "support-messages-gold.csv", "new-messages.csv"):
        assert (tmp_path / name).read_bytes() == (ROOT / "samples" / name).read_bytes()


def test_the_sample_is_large_and_multiply_annotated():
    with (ROOT / "samples/support-messages.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    items = {row["item_id"] for row in rows}
    assert len(items) >= 600
    assert len(rows) > 3 * len(items)
    assert len({row["annotator_id"] for row in rows}) == len(ANNOTATORS) >= 3
    assert len({row["text"] for row in rows}) == len(items)

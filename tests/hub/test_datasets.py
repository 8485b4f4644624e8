"""Annotations from a dataset on the Hub: pinned, and private with a token alone."""

import io

import pandas as pd
import pytest
from huggingface_hub import HfApi

from slm_judge.data.tables import read_table
from slm_judge.errors import DataError


@pytest.fixture
def dataset(logged_in):
    """A dataset with two revisions; its first commit."""
    api = HfApi()
    api.create_repo("me/answers", repo_type="dataset", exist_ok=True)

    def upload(texts):
        buffer = io.BytesIO()
        pd.DataFrame({"text": texts}).to_parquet(buffer)
        return api.upload_file(
            path_or_fileobj=buffer.getvalue(), path_in_repo="data/train.parquet",
            repo_id="me/answers", repo_type="dataset",
        ).oid  # fmt: skip

    first = upload(["old"])
    upload(["new", "newer"])
    return first


def test_a_dataset_is_read_at_its_revision(dataset):
    assert [row["text"] for row in read_table("me/answers").rows] == ["new", "newer"]
    assert [row["text"] for row in read_table(f"me/answers@{dataset}#train").rows] == ["old"]


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("me/none", "There is no repository me/none on the Hub, or it is private"),
        ("me/answers@v9", "me/answers has no revision 'v9'"),
        ("me/answers#test", "cannot be read from the Hub"),
    ],
)
def test_what_is_not_there(dataset, location, complaint):
    with pytest.raises(DataError, match=complaint):
        read_table(location)

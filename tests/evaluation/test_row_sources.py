"""Data sets of the Hub, from a Hub on loopback."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcm_cli.errors import LcmError, NotFoundError, UsageError
from lcm_cli.evaluation.row_sources import REVISION, language_of, locate
from lcm_cli.evaluation.rows import read_rows

LANGUAGES = ("eng_Latn", "deu_Latn")


def parquet(*texts):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": list(texts), "summary": [t[:5] for t in texts]}), buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(hub_server):
    """A data set with a language of two files, and another without a test split."""
    files = {
        "german/test/0000.parquet": parquet("Die Katze schläft.", "Es ist spät."),
        "german/test/0001.parquet": parquet("Tom ist hier."),
        "english/train/0000.parquet": parquet("The cat sleeps."),
    }
    hub_server.publish("org/set", files, REVISION)
    return hub_server


def test_a_config_and_a_split_are_fetched_once(hub, monkeypatch):
    path, about = locate("org/set:german")
    assert (about["config"], about["split"]) == ("german", "test")
    assert about["revision"] == hub.repos["org/set"].refs[REVISION]
    assert language_of(about) == "deu_Latn"
    rows = read_rows(path, LANGUAGES, "tiny", lang="deu_Latn")
    assert [(row.number, row.source[0]) for row in rows][1:] == [
        (2, "Es ist spät."),
        (3, "Tom ist hier."),
    ]
    assert hub.sent("english") == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert locate("org/set:german:test") == (path, about | {"path": "org/set:german:test"})


def test_what_a_data_set_lacks_is_said(hub, monkeypatch):
    with pytest.raises(UsageError, match="several parts") as caught:
        locate("org/set")
    assert "english, german" in caught.value.hint
    with pytest.raises(UsageError, match="no 'gherman'") as caught:
        locate("org/set:gherman")
    assert "org/set:german" in caught.value.hint
    with pytest.raises(UsageError, match="no 'test'") as caught:
        locate("org/set:english")
    assert "train" in caught.value.hint
    with pytest.raises(NotFoundError):
        locate("org/other:german")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LcmError, match="not on this machine") as caught:
        locate("org/set:german")
    assert "without --offline" in caught.value.hint


def test_a_path_that_is_missing_is_no_data_set():
    assert locate("examples/missing.jsonl")[0] == "examples/missing.jsonl"

"""Data sets of the Hub, from a Hub served on loopback."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcm_cli.errors import LcmError, NotFoundError, UsageError
from lcm_cli.evaluation.example_sources import REVISION, language_of, locate
from lcm_cli.evaluation.examples import read_examples

LANGUAGES = ("eng_Latn", "deu_Latn")


def parquet(*texts):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": list(texts), "summary": [t[:5] for t in texts]}), buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(hub_server):
    """Serve a data set with a config of two files, and one without a test split."""
    files = {
        "german/test/0000.parquet": parquet("Die Katze schläft.", "Es ist spät."),
        "german/test/0001.parquet": parquet("Tom ist hier."),
        "english/train/0000.parquet": parquet("The cat sleeps."),
    }
    hub_server.publish("org/set", files, REVISION)
    return hub_server


def test_a_split_is_downloaded_once(hub, monkeypatch):
    path, about = locate("org/set:german")
    assert (about["config"], about["split"]) == ("german", "test")
    assert about["revision"] == hub.repos["org/set"].refs[REVISION]
    assert language_of(about) == "deu_Latn"
    examples = read_examples(path, LANGUAGES, "tiny", lang="deu_Latn")
    assert [(each.number, each.source[0]) for each in examples][1:] == [
        (2, "Es ist spät."),
        (3, "Tom ist hier."),
    ]
    assert hub.sent("english") == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert locate("org/set:german:test") == (path, about | {"path": "org/set:german:test"})


def test_missing_configs_splits_and_data_sets(hub, monkeypatch):
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
    with pytest.raises(LcmError, match="has not been downloaded") as caught:
        locate("org/set:german")
    assert "without --offline" in caught.value.hint


def test_a_missing_path_is_not_taken_for_a_data_set():
    assert locate("examples/missing.jsonl")[0] == "examples/missing.jsonl"

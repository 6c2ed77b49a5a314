"""The endpoint /similar searches the indexes of the server."""

import httpx
import numpy as np
import pytest

from lcm_cli.documents import Document
from lcm_cli.errors import IntegrityError
from lcm_cli.pipeline import space_info
from lcm_cli.search.index import Index, write_index
from lcm_cli.serving.service import load_service

SENTENCES = ["Where is my dog?", "It is raining.", "I bought a red car."]


@pytest.fixture(scope="module")
def client(serve, space, tmp_path_factory):
    folder = tmp_path_factory.mktemp("similar") / "stories"
    concepts = space.encode(SENTENCES, "eng_Latn").concepts
    document = Document("stories.txt", "eng_Latn", sentences=SENTENCES, concepts=concepts)
    write_index(folder, space_info(space), [document])
    with serve(indexes=[Index(folder)]) as server, httpx.Client(base_url=server.url) as client:
        yield client


def test_the_nearest_sentences_are_found_in_another_language(client):
    body = {"text": "Wo ist mein Hund?", "lang": "de", "k": 2, "to": ["en", "fr"]}
    found = client.post("/similar", json=body).json()
    assert found["lang"] == "deu_Latn"
    first, second = found["results"]
    assert (first["id"], first["index"], first["text"]) == ("stories.txt", 1, SENTENCES[0])
    assert first["texts"]["eng_Latn"] == SENTENCES[0] and first["texts"]["fra_Latn"]
    assert first["score"] > second["score"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"text": ""}, 400),
        ({"text": "Hello.", "k": 0}, 400),
        ({"text": "Hello.", "to": ["Klingon"]}, 400),
        ({"text": "Hello.", "near": 3}, 400),
    ],
)
def test_bad_requests(client, body, code):
    answer = client.post("/similar", json=body)
    assert answer.status_code == code and answer.json()["error"]


def test_a_server_without_an_index(server):
    answer = httpx.post(f"{server.url}/similar", json={"text": "Hello."})
    assert answer.status_code == 404 and "no index" in answer.json()["error"]


def test_an_index_of_another_space_is_refused(space, tmp_path):
    info = space_info(space).__class__("other", "0" * 16, 4)
    document = Document("a", "eng_Latn", sentences=["One."], concepts=np.ones((1, 4), np.float32))
    write_index(tmp_path / "other", info, [document])
    with pytest.raises(IntegrityError, match="other"):
        load_service(space, indexes=[Index(tmp_path / "other")])

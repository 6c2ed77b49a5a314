"""The endpoints, called by the clients that they are made for."""

import json
import shutil
import subprocess
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

httpx = pytest.importorskip("httpx")

STORY = Path(__file__).resolve().parents[2] / "examples" / "lost_dog.txt"
CAT = "It is cold."


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def events(response):
    """Return the server-sent events of an answer."""
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


# OpenAI's clients


@pytest.fixture
def openai(server):
    package = pytest.importorskip("openai")
    with package.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.slow
def test_openais_client_gets_embeddings(openai, space):
    assert [model.id for model in openai.models.list()] == ["tiny"]
    texts = [CAT, "Le chat dort dans la maison."]
    expected = space.encode(texts, ["eng_Latn", "fra_Latn"]).concepts
    for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        found = openai.embeddings.create(model="tiny", input=texts, **encoding)
        rows = [each.embedding for each in found.data]
        if isinstance(rows[0], str):  # base64 that was asked for is not decoded
            import base64

            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
        np.testing.assert_allclose(rows, expected, atol=1e-5)
        assert [each.index for each in found.data] == [0, 1]
    tokens = sum(map(len, space.tokenize(texts, ["eng_Latn", "fra_Latn"])))
    assert found.usage.prompt_tokens == found.usage.total_tokens == tokens
    one = openai.embeddings.create(model="tiny", input="chat", extra_body={"lang": "French"})
    expected = space.encode(["chat"], "fra_Latn").concepts[0]
    np.testing.assert_allclose(one.data[0].embedding, expected, atol=1e-5)


def test_openais_client_gets_errors(openai):
    package = pytest.importorskip("openai")
    with pytest.raises(package.NotFoundError, match="this server has tiny") as caught:
        openai.embeddings.create(model="text-embedding-3-small", input="x")
    assert caught.value.code == "model_not_found"
    for text, message in (
        ("", "empty string"),
        ([], "a string or a list"),
        ([1, 2, 3], "token ids"),
        ("the cat and the dog " * 100, "input 0 has .* tokens"),
    ):
        with pytest.raises(package.BadRequestError, match=message):
            openai.embeddings.create(model="tiny", input=text)
    with pytest.raises(package.BadRequestError, match="384 dimensions"):
        openai.embeddings.create(model="tiny", input="x", dimensions=64)


def test_embeddings_of_many_clients_equal_those_alone(client, space):
    texts = [f"The {n} cats sleep." for n in range(24)]
    expected = space.encode(texts, "eng_Latn").concepts

    def one(text):
        found = client.post("/v1/embeddings", json={"input": text, "lang": "eng_Latn"})
        return found.json()["data"][0]["embedding"]

    with ThreadPoolExecutor(12) as pool:
        np.testing.assert_allclose(list(pool.map(one, texts)), expected, atol=1e-5)


# LibreTranslate's clients


@pytest.fixture
def libre(server):
    return pytest.importorskip("libretranslatepy").LibreTranslateAPI(server.url)


def test_libretranslates_client(libre):
    assert libre.translate(CAT, "en", "de") == "Es ist kalt."
    assert "froid" in libre.translate(CAT, "auto", "fr")
    assert libre.detect("Le chat dort dans la maison.")[0]["language"] == "fr"
    french = next(one for one in libre.languages() if one["code"] == "fr")
    assert french["name"] == "French" and french["targets"] == ["de", "en", "es", "fr", "nl"]
    with pytest.raises(urllib.error.HTTPError) as caught:
        libre.translate(CAT, "en", "klingon")
    assert caught.value.code == 400
    assert "unknown language 'klingon'" in json.loads(caught.value.read())["error"]


def test_translations_have_libretranslates_form(client):
    one = client.post("/translate", json={"q": CAT, "source": "auto", "target": "de"}).json()
    assert one.keys() == {"translatedText", "detectedLanguage"}
    assert one["detectedLanguage"]["language"] == "en"
    assert 50 < one["detectedLanguage"]["confidence"] <= 100
    many = {"q": [CAT, "", CAT], "source": "en", "target": "de", "alternatives": 3}
    found = client.post("/translate", json=many).json()
    assert found["translatedText"] == ["Es ist kalt.", "", "Es ist kalt."]
    assert len(found["alternatives"]) == 3 and found["alternatives"][1] == []
    assert 1 <= len(found["alternatives"][0]) <= 3
    assert "Es ist kalt." not in found["alternatives"][0]


def test_lines_and_tags_are_kept(client):
    text = f"{CAT}\n\n  {CAT}\n"
    found = client.post("/translate", data={"q": text, "source": "en", "target": "de"}).json()
    assert found["translatedText"] == "Es ist kalt.\n\nEs ist kalt.\n"
    html = {"q": f"<p class=a>{CAT}</p><br>", "source": "en", "target": "de", "format": "html"}
    found = client.post("/translate", json=html).json()["translatedText"]
    assert found == "<p class=a>Es ist kalt.</p><br>"
    same = client.post("/translate", json={"q": text, "source": "en", "target": "en"}).json()
    assert same["translatedText"] == text


def test_documents_are_translated_by_sentence(client):
    body = {"q": STORY.read_text("utf-8"), "target": "fr", "format": "document"}
    whole = client.post("/translate", json=body).json()
    assert whole["total"] == len(whole["sentences"]) == 15 and whole["threshold"] == 0.74
    assert whole["sentences"][0]["source"] == "Tom lives in a small village."
    assert whole["sentences"][0].keys() == {
        *("source", "paragraph", "text", "similarity", "doubt", "lost")
    }
    streamed = client.post("/translate", json=body | {"stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    (first, about), *rest, last = events(streamed)
    assert first == "document" and about["total"] == 15 and last == ("done", {})
    texts = [one["text"] for _, data in rest for one in data["sentences"]]
    assert texts == [one["text"] for one in whole["sentences"]]


def test_detection_without_words(client):
    assert client.post("/detect", json={"q": "12 + 3"}).json() == [
        {"confidence": 0.0, "language": "en"}
    ]


# Our own


def test_summaries_are_those_of_the_command(client, lcm):
    body = {"text": STORY.read_text("utf-8"), "to": ["fra", "German"], "length": "3", "cite": True}
    found = client.post("/summarize", json=body | {"document": True}).json()
    call = ("summarize", STORY, "--to", "fra", "--to", "de", "--length", "3", "--json")
    expected = json.loads(lcm(*call).stdout)
    assert found["summaries"] == expected["summaries"]
    assert [one["sources"][0]["index"] for one in found["sentences"]] == [
        one["index"] for one in expected["sentences"]
    ]
    assert found["sentences"][0]["sources"][0]["similarity"].keys() == {"fra_Latn", "deu_Latn"}
    assert len(found["document"]["sentences"]) == found["total"] == 15
    own = client.post("/summarize", json={"text": body["text"]}).json()
    assert list(own["summaries"]) == ["eng_Latn"]


def test_decoding(client, space):
    concepts = space.encode([CAT, "It is cold."], "eng_Latn").concepts.tolist()
    found = client.post("/decode", json={"concepts": concepts, "to": "deu"}).json()
    assert found == {"texts": {"deu_Latn": ["Es ist kalt.", "Es ist kalt."]}}
    body = {"concepts": concepts[:1], "to": ["deu", "eng"], "n_best": 2}
    found = client.post("/decode", json=body).json()
    assert [len(row) for row in found["candidates"]["eng_Latn"]] == [2]


def test_generation_needs_a_model(client):
    answer = client.post("/generate", json={"text": CAT})
    assert answer.status_code == 404 and answer.json() == {
        "error": "this server has no concept model"
    }


@pytest.mark.slow
def test_a_model_summarizes_and_generates(serve, taught):
    text = " ".join(taught.stories["cat"])
    with serve(model=str(taught.folder)) as server, httpx.Client(base_url=server.url) as client:
        client.timeout = 120
        name = taught.folder.name
        found = client.post("/summarize", json={"text": text}).json()
        assert found["method"] == "generated" and found["model"] == name
        assert found["summaries"]["eng_Latn"] == " ".join(taught.summaries["cat"])
        quoted = client.post("/summarize", json={"text": text, "model": "extractive"}).json()
        assert quoted["method"] != "generated"
        body = {"text": text, "max_concepts": 3, "min_concepts": 3}
        whole = client.post("/generate", json=body).json()
        assert [one["index"] for one in whole["sentences"]] == [1, 2, 3]
        *sentences, (last, done) = events(client.post("/generate", json=body | {"stream": True}))
        assert [data for _, data in sentences] == whole["sentences"]
        assert last == "done" and done == {"texts": whole["texts"], "stop": whole["stop"]}
        bad = client.post("/generate", json=body | {"steps": 5})
        assert bad.status_code == 400 and "no 'steps'" in bad.json()["error"]
        listed = client.get("/v1/models").json()["data"]
        assert [one["id"] for one in listed] == ["tiny", name]
        answers = [found, whole, bad.json(), client.get("/metrics").text]
        assert str(taught.folder.parent) not in json.dumps(answers)


def test_curl(server):
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl here")
    call = [curl, "-sS", f"{server.url}/translate", "-d", f"q={CAT}", "-d", "target=de"]
    done = subprocess.run(call, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout)["translatedText"] == "Es ist kalt."


def test_metrics_count_the_work(client):
    parser = pytest.importorskip("prometheus_client.parser")
    client.post("/translate", json={"q": CAT, "source": "en", "target": "fr"})
    client.get("/nowhere")
    families = parser.text_string_to_metric_families(client.get("/metrics").text)
    samples = {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}
    assert samples["lcm_requests_total", "/translate", "200"] >= 1
    assert samples["lcm_requests_total", "other", "404"] >= 1
    assert samples["lcm_request_seconds_count", "/translate"] >= 1
    assert samples["lcm_sentences_decoded_total",] >= 1
    assert samples["lcm_batch_sentences_count", "encode"] >= 1
    assert samples["lcm_queue_jobs",] == 0 and samples["lcm_active_requests",] == 1

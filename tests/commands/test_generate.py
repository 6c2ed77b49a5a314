"""lcm generate: every kind of model, text and concepts, and errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rounding import additions, assert_near
from safetensors.torch import load_file, save_file

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.models import load_model
from lcm_cli.models.checkpoint import build, save
from lcm_cli.models.config import SpaceRef, preset
from lcm_cli.models.generate import GenerateOptions
from lcm_cli.space import load_space
from lcm_cli.writing.writer import generate

GOLDEN = Path(__file__).parent.parent / "golden"
KINDS = ("base", "two_tower", "one_tower", "quant", "sonar_llm")
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, random_space: Path) -> Path:
    """A folder with an untrained nano model of every kind, in a small space."""
    folder, small = tmp_path_factory.mktemp("models"), load_space(str(random_space))
    for kind in KINDS:
        torch.manual_seed(0)
        space = SpaceRef(str(random_space), small.fingerprint)
        save(build(preset(kind, "nano", concept_dim=small.dim, space=space)), folder / kind)
    return folder


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official models of the fixtures, converted, and a prompt for them."""
    from lcm_cli.transfer.convert import convert

    folder = tmp_path_factory.mktemp("golden")
    for name in ("base", "two_tower"):
        convert(str(GOLDEN / f"{name}_model.safetensors"), folder / name)
    concepts = load_file(GOLDEN / "base_forward.safetensors")["seqs"][0][:5].clone()
    save_file({"concepts": concepts}, folder / "p.safetensors")
    return folder


def _short(lcm: Run, *args: str | Path, **more: Any) -> Any:
    return lcm("generate", *args, "--max-concepts", "2", **more)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_continues_a_story(
    lcm: Run, models: Path, random_space: Path, story: Path, kind: str
) -> None:
    done = _short(lcm, story, "--model", models / kind, "--to", "fra", "--json", "--seed", "3")
    assert done.code == 0, done.stderr
    (found,) = map(json.loads, done.stdout.splitlines())
    assert (found["id"], found["lang"]) == (str(story.name), "eng_Latn")
    assert (found["architecture"], found["space"], found["seed"]) == (kind, "random", 3)
    assert found["stop"] in ("end", "repetition", "length")
    assert set(found["texts"]) == ({"fra_Latn"} if found["sentences"] else set())
    assert found["fingerprint"] == load_space(str(random_space)).fingerprint
    assert found["options"]["max_concepts"] == 2
    assert found["version"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_from_int8(
    lcm: Run, models: Path, story: Path, tmp_path: Path, kind: str
) -> None:
    """Its text is that of a model with the same numbers in float32."""
    texts = []
    for source, store in ((models / kind, "int8"), (tmp_path / "int8", "float32")):
        made = lcm("checkpoints", "convert", source, "-o", tmp_path / store, "--store", store)
        assert made.code == 0, made.stderr
        done = _short(lcm, story, "--model", tmp_path / store, "--to", "fra", "--seed", "3")
        assert done.code == 0, done.stderr
        texts.append(done.stdout)
    assert texts[0] == texts[1]


def test_text_is_printed_in_the_language_of_the_document(
    lcm: Run, models: Path, german: Path
) -> None:
    args = (german, "--model", models / "two_tower", "--steps", "3")
    plain, fields = _short(lcm, *args), _short(lcm, *args, "--json")
    assert plain.code == 0, plain.stderr
    sentences = json.loads(fields.stdout)["sentences"]
    assert plain.stdout.splitlines() == [each["texts"]["deu_Latn"] for each in sentences]
    assert len(sentences) == 2
    assert "2 added; --max-concepts is reached" in plain.stderr


def test_several_languages_and_documents(lcm: Run, models: Path, story: Path, german: Path) -> None:
    args = ("--model", models / "two_tower", "--steps", "3", "--to", "fra", "--to", "nld")
    one = _short(lcm, story, *args)
    assert one.stdout.startswith("French (fra_Latn):\n")
    assert "\n\nDutch (nld_Latn):\n" in one.stdout
    both = _short(lcm, story, german, *args)
    first, second = both.stdout.split("==> ")[1:]
    assert first.partition(" <==\n")[2].strip() == one.stdout.strip()
    assert second.startswith(str(german))


def test_seeds(lcm: Run, models: Path, story: Path) -> None:
    def made(*args: str) -> str:
        done = _short(lcm, story, "--model", models / "two_tower", "--steps", "3", *args)
        assert done.code == 0, done.stderr
        return str(done.stdout)

    assert made() == made("--seed", "0")
    assert made("--seed", "1") != made("--seed", "0")


@pytest.mark.parametrize("judge", ["likelihood", "roundtrip"])
@pytest.mark.parametrize("rerank", ["document", "step"])
def test_candidates(lcm: Run, models: Path, story: Path, judge: str, rerank: str) -> None:
    choice = ("--candidates", "3", "--rerank", rerank, "--judge", judge)
    args = (story, "--model", models / "base", "--temperature", "0.5", "--json")
    done = lcm("generate", *args, *choice, "--max-concepts", "1")
    assert done.code == 0, done.stderr
    assert isinstance(json.loads(done.stdout)["score"], float)


def test_a_trace_decodes_every_step(lcm: Run, models: Path, story: Path) -> None:
    args = (story, "--model", models / "two_tower", "--steps", "4", "--trace")
    fields = json.loads(_short(lcm, *args, "--json").stdout)
    first = fields["sentences"][0]
    assert [step["step"] for step in first["trace"]] == [1, 2, 3, 4]
    noises = [step["noise"] for step in first["trace"]]
    assert noises[0] == 1.0
    assert noises == sorted(noises, reverse=True)
    assert first["trace"][-1]["similarity"] == pytest.approx(1, abs=1e-4)
    assert all(step["text"] for step in first["trace"])
    table = _short(lcm, *args).stderr
    assert "how sentence 1 came about:\n  step  noise  cosine\n     1  1.000" in table
    assert "how sentence 2 came about:" in table


def test_concepts_in_and_concepts_out(lcm: Run, golden: Path, tmp_path: Path) -> None:
    """The command writes the concepts that the library generates."""
    out = tmp_path / "o.safetensors"
    args = (golden / "p.safetensors", "--model", golden / "base", "--concepts-out", out)
    done = lcm("generate", *args, "--max-concepts", "8", "--precision", "float32")
    assert (done.code, done.stdout) == (0, "")
    made = load_file(out)["concepts"]
    prompt = load_file(golden / "p.safetensors")["concepts"]
    model = load_model(golden / "base")
    options = GenerateOptions(max_concepts=8)
    expected = generate(Document("p", concepts=prompt.numpy()), model, options=options)
    assert_near(made, expected.document().concepts, 8 * additions(model))
    again = lcm("generate", *args)
    assert again.code == 2
    assert "exists already" in again.stderr
    for suffix in ("parquet", "jsonl", "arrow"):
        other = tmp_path / f"o.{suffix}"
        assert _short(lcm, *args[:3], "--concepts-out", other).code == 0
        assert json.loads(lcm("inspect", other, "--json").stdout)["concepts"] == 2


def test_concepts_that_lcm_embedded(
    lcm: Run, models: Path, random_space: Path, story: Path, tmp_path: Path
) -> None:
    embedded, out = tmp_path / "s.parquet", tmp_path / "o.parquet"
    assert (
        lcm("embed", story, "-o", embedded, "--dtype", "float32", "--space", random_space).code == 0
    )
    args = ("--model", models / "two_tower", "--steps", "3", "--min-concepts", "2")
    from_concepts = _short(lcm, embedded, *args, "--concepts-out", out)
    assert from_concepts.stdout == _short(lcm, story, *args).stdout
    report = json.loads(lcm("inspect", out, "--json").stdout)
    assert (report["sentences"], report["space"]["name"]) == (2, "random")


def test_standard_input(lcm: Run, models: Path) -> None:
    args = ("--model", models / "base", "--from", "fra", "--to", "eng")
    done = lcm("generate", "-", *args, "--max-concepts", "1", input=b"Le chat dort.")
    assert done.code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1


def _broken(folder: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Copy a model and change its config."""
    target.mkdir()
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return target


def test_a_config_with_an_unknown_key(lcm: Run, models: Path, story: Path, tmp_path: Path) -> None:
    model = _broken(models / "base", tmp_path / "m", lambda c: c.update(modeldim=3))
    done = _short(lcm, story, "--model", model)
    assert done.code == 5
    assert "unknown key 'modeldim'" in done.stderr
    assert "hint: did you mean model_dim" in done.stderr


def test_a_model_of_another_space(lcm: Run, models: Path, story: Path, tmp_path: Path) -> None:
    done = _short(lcm, story, "--model", models / "base", "--space", "tiny")
    assert done.code == 5
    assert "of width 32" in done.stderr
    model = _broken(models / "base", tmp_path / "m", lambda c: c["space"].update(fingerprint="0"))
    done = _short(lcm, story, "--model", model)
    assert done.code == 5
    assert "the model was trained in the space" in done.stderr and " (0)" in done.stderr
    absent = _broken(models / "base", tmp_path / "n", lambda c: c.update(space={"name": "gone"}))
    done = _short(lcm, story, "--model", absent)
    assert done.code == 3
    assert "there is no space called 'gone'" in done.stderr


def test_concepts_of_another_width(lcm: Run, models: Path, tmp_path: Path) -> None:
    save_file({"concepts": torch.ones(3, 16)}, tmp_path / "p.safetensors")
    done = _short(lcm, tmp_path / "p.safetensors", "--model", models / "base", "--to", "fra")
    assert done.code == 5
    assert "16" in done.stderr and "32" in done.stderr


def test_damaged_weights(lcm: Run, models: Path, story: Path, tmp_path: Path) -> None:
    model = _broken(models / "base", tmp_path / "m", lambda c: None)
    file = model / "model.safetensors"
    state = load_file(models / "base" / "model.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    cut = _short(lcm, story, "--model", model)
    assert cut.code == 5
    assert "is damaged" in cut.stderr
    state.pop("postnet.fc.bias")
    save_file(state, file)
    lacking = _short(lcm, story, "--model", model)
    assert lacking.code == 5
    assert "missing tensors: postnet.fc.bias" in lacking.stderr
    file.unlink()
    assert _short(lcm, story, "--model", model).code == 3


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--steps", "101"], 2, "101 denoising steps, but the model was trained with 100"),
        (["--max-concepts", "4000"], 2, "it exceeds the model's 2048"),
        (["--temperature", "-1"], 2, "--temperature"),
        (["--trace", "--candidates", "2"], 2, "a trace follows one candidate"),
        (["--to", "frx"], 3, "did you mean French"),
        (["--model", "nosuch"], 3, "there is no model called 'nosuch'"),
        (["--model", "tiny"], 2, "tiny is a space, not a model"),
        (["--concepts-out", "x.txt"], 2, "unknown suffix"),
        (["--concepts-out", "-", "--json"], 2, "both use stdout"),
        (["--guidance", "inf"], 5, "the model predicts NaN or infinite concepts"),
    ],
)
def test_options_that_do_not_suit(
    lcm: Run, models: Path, story: Path, args: list[str], code: int, message: str
) -> None:
    done = lcm("generate", story, "--model", models / "two_tower", *args)
    assert (done.code, done.stdout) == (code, "")
    assert message in done.stderr


def test_options_that_a_model_does_not_have(lcm: Run, models: Path, story: Path) -> None:
    for flags in (["--steps", "3"], ["--guidance", "2"]):
        done = _short(lcm, story, "--model", models / "base", *flags)
        assert done.code == 2
        assert f"a base model has no {flags[0]}" in done.stderr
        assert "hint: it has: --temperature" in done.stderr
    done = _short(lcm, story, "--model", models / "quant", "--trace")
    assert done.code == 2
    assert "a quant model has no denoising steps to trace" in done.stderr


def _concepts(path: Path, concepts: np.ndarray) -> Path:
    save_file({"concepts": torch.from_numpy(concepts.astype(np.float32))}, path)
    return path


def test_prompts_that_cannot_be_continued(lcm: Run, golden: Path, tmp_path: Path) -> None:
    def made(concepts: np.ndarray) -> Any:
        file = _concepts(tmp_path / "p.safetensors", concepts)
        return _short(lcm, file, "--model", golden / "base", "--json")

    row = np.full((1, 32), 0.01)
    broken = np.concatenate([row, row * np.nan])
    for concepts, code, message in (
        (np.zeros((0, 32)), 5, "p.safetensors"),
        (broken, 5, "NaN"),
        (np.zeros((2, 31)), 5, "31"),
        (np.repeat(row, 63, axis=0), 2, "with 2 more it exceeds the model's 64"),
    ):
        done = made(concepts)
        assert (done.code, done.stdout) == (code, ""), done.stderr
        assert message in done.stderr


def test_text_that_cannot_be_continued(lcm: Run, models: Path, tmp_path: Path) -> None:
    def made(content: bytes) -> Any:
        (tmp_path / "t.txt").write_bytes(content)
        return _short(lcm, tmp_path / "t.txt", "--model", models / "base")

    for content in (b"", b" \n ", b"\x00\x01\x02"):
        done = made(content)
        assert done.code != 0
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
    assert _short(lcm, tmp_path / "gone.txt", "--model", models / "base").code == 3


def test_nothing_is_written_where_every_prompt_is_refused(
    lcm: Run, golden: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    outputs = [tmp_path / "more.parquet", tmp_path / "out.jsonl"]
    for file in files:
        _concepts(file, np.full((63, 32), 0.01))
    to = ("--concepts-out", outputs[0], "--json", "-o", outputs[1])
    for count, code in ((1, 2), (2, 1)):
        done = _short(lcm, *files[:count], "--model", golden / "base", *to)
        assert (done.code, done.stderr.count("error: ")) == (code, count), done.stderr
        assert sorted(tmp_path.glob("[mo]*")) == []


def test_one_broken_document_does_not_stop_the_others(
    lcm: Run, models: Path, tmp_path: Path
) -> None:
    file = tmp_path / "d.jsonl"
    rows = [{"id": "a", "text": "The cat sleeps."}, {"id": "b", "text": ""}]
    rows += [{"id": "c", "text": "The dog runs.", "lang": "eng_Latn"}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    done = _short(lcm, file, "--model", models / "base", "--from", "eng", "--json")
    assert done.code == 1
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["a", "c"]


def test_sentences_over_the_token_limit_are_reported(
    lcm: Run, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("hen " * 1000)
    args = (tmp_path / "long.txt", "--model", models / "base", "--from", "en", "--one-per-line")
    done = lcm("generate", *args, "--max-concepts", "1")
    assert done.code == 0, done.stderr
    assert "sentence 1 has" in done.stderr


def test_the_least_number_of_concepts(lcm: Run, models: Path, story: Path) -> None:
    """An untrained Base-LCM repeats itself, which a minimum does not let it."""
    call = ("generate", story, "--model", models / "base", "--json", "--max-concepts")
    free, held = (
        json.loads(lcm(*call, *more).stdout) for more in (["6"], ["6", "--min-concepts", "6"])
    )
    assert (free["stop"], held["stop"]) == ("repetition", "length")
    assert len(free["sentences"]) < 6 == len(held["sentences"])


def test_text_needs_a_space(lcm: Run, golden: Path, story: Path) -> None:
    text = _short(lcm, story, "--model", golden / "base", "--json")
    assert text.code == 2
    assert "is text, and the space of this model is not known" in text.stderr
    words = _short(lcm, golden / "p.safetensors", "--model", golden / "base")
    assert words.code == 2
    assert "there is no text to print" in words.stderr
    to = _short(lcm, golden / "p.safetensors", "--model", golden / "base", "--to", "fra", "--json")
    assert to.code == 2
    assert "so it has no languages" in to.stderr


@pytest.mark.parametrize("width", [16, 32])
def test_a_model_that_names_no_space_takes_concepts_of_its_width(
    lcm: Run, golden: Path, tmp_path: Path, width: int
) -> None:
    rows_SD = load_file(golden / "p.safetensors")["concepts"].numpy()[:, :width]
    prompt, target = tmp_path / "prompt.safetensors", tmp_path / "more.safetensors"
    with open_writer(str(prompt), SpaceInfo("other", "0" * 64, width), dtype="float32") as file:
        file.write(Document("a", "eng_Latn", concepts=rows_SD))
    done = _short(lcm, prompt, "--model", golden / "base", "--concepts-out", target)
    assert target.exists() == (width == 32), done.stderr
    assert ("concepts of width 16, the model reads 32" in done.stderr) == (width == 16)

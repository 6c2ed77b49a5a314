"""The readers of `lcm`: small valid files for each, and the calls that read them."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torture import mutation

from lcm_cli.documents import arrow, read, read_any, read_concepts, tensors
from lcm_cli.documents.description import describe
from lcm_cli.documents.document import Document, SpaceInfo
from lcm_cli.documents.text import to_json
from lcm_cli.errors import LcmError

DIM = 32
Call = Callable[[Path], object]
Mutate = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Reader:
    """A file, or a folder of files, with the mutations and the calls that suit it.

    `path` is the path to read, relative to the folder of the files.
    """

    name: str
    files: dict[str, bytes]
    calls: tuple[Call, ...]
    path: str = ""
    mutations: dict[str, Mutate] = field(default_factory=dict)  # by suffix; else mutation.mutate

    def broken(self, chance: Random, folder: Path) -> tuple[Path, int]:
        """Write the files, one of them broken, to the empty `folder`; return the path, the size."""
        names = list(self.files)
        # The smaller files are configs, which have more ways to be wrong.
        target = chance.choice(names)
        size = 0
        for name, data in self.files.items():
            if name == target:
                data = self.mutations.get(Path(name).suffix, mutation.mutate)(data, chance)
            (folder / name).write_bytes(data)
            size += len(data)
        return folder / self.path, size

    def attempt(self, chance: Random, folder: Path) -> tuple[str, str, int]:
        """Read broken files; return the result, the error's message and the size of the files."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path, size = self.broken(chance, folder)
        return *outcome(chance.choice(self.calls), path), size


def outcome(call: Call, path: Path) -> tuple[str, str]:
    """Return "accepted", "refused" or the fault in a call, and the message of its error."""
    try:
        call(path)
        return "accepted", ""
    except LcmError as error:
        return "refused", error.message[:200]
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}", ""


def command(*arguments: str) -> Call:
    """Return a call of `lcm` on a path, which replaces PATH in the arguments."""

    def run(path: Path) -> None:
        from lcm_cli.app import main

        with _streams() as streams:
            code = main([each.replace("PATH", str(path)) for each in arguments])
        errors = streams["stderr"].getvalue().decode("utf-8", "replace")
        if "error: unexpected " in errors or "Traceback" in errors:
            raise AssertionError(errors)
        if code:
            raise LcmError(errors)

    return run


@contextmanager
def _streams() -> Iterator[dict[str, io.BytesIO]]:
    raw = {name: io.BytesIO() for name in ("stdin", "stdout", "stderr")}
    old = {name: getattr(sys, name) for name in raw}
    for name, stream in raw.items():
        setattr(sys, name, io.TextIOWrapper(stream, encoding="utf-8", write_through=True))
    try:
        yield raw
    finally:
        for name, stream in old.items():
            with suppress(ValueError):
                getattr(sys, name).detach()
            setattr(sys, name, stream)


def readers(space: Path, model: Path) -> list[Reader]:
    """Return every reader; `space` and `model` are the folders of small valid checkpoints."""
    json_lines = {".jsonl": mutation.mutate_json}
    weights = {".safetensors": mutation.mutate_safetensors, ".json": mutation.mutate_json}
    toml = {".toml": mutation.mutate_toml}
    concepts = (_concepts, _concepts, _describe, _any, _text, command("inspect", "PATH", "--json"))
    document = (_text, _any, _describe, command("inspect", "PATH"))
    files = _documents()
    found = [Reader(name, {name: files[name]}, document, name) for name in ("a.txt",)]
    found += [Reader("a.jsonl", {"a.jsonl": files["a.jsonl"]}, document, "a.jsonl", json_lines)]
    for name in ("b.jsonl", "a.parquet", "a.arrow", "a.arrows", "other.arrows", "a.safetensors"):
        suits = json_lines | weights
        found.append(Reader(name, {name: files[name]}, concepts, name, suits))
    found.append(Reader("data set", _data_set(), concepts, "", weights))
    found.append(Reader("space", _folder(space), (_space, _space, _inspect), "", weights))
    whole, parts = _folder(model), _sharded(model)
    found.append(Reader("model", whole, (_model, _model, _inspect), "", weights))
    found.append(Reader("sharded model", parts, (_model, _model, _inspect), "", weights))
    found.append(Reader("recipe", {"a.toml": _RECIPE}, (_recipe,), "a.toml", toml))
    found.append(Reader("space recipe", {"a.toml": _SPACE_RECIPE}, (_recipe,), "a.toml", toml))
    with_config = command("languages", "--config", "PATH")
    found.append(Reader("lcm.toml", {"lcm.toml": _SETTINGS}, (with_config,), "lcm.toml", toml))
    found.append(Reader("card", {"a.toml": _CARD}, (_card, _inspect), "a.toml", toml))
    return found


def sample(count: int = 4, dim: int = DIM) -> list[Document]:
    """Return small documents with sentences, concepts, targets and plans."""
    numbers = np.random.default_rng(0)

    def concepts(size: int) -> Any:
        return numbers.standard_normal((size, dim)).astype(np.float16)

    documents = []
    for number in range(count):
        own = Document(f"d{number}", "eng_Latn", sentences=["A hen ran.", "É.", "The dog slept."])
        own.paragraphs, own.concepts, own.split = [0, 0, 1], concepts(3), "train"
        own.target = Document("", sentences=["Hens."], concepts=concepts(1))
        own.plans = Document("", sentences=["A.", "B."], concepts=concepts(2))
        documents.append(own)
    return documents


INFO = SpaceInfo("tiny", "f" * 16, DIM)


def _documents() -> dict[str, bytes]:
    documents = sample()
    layout = arrow.schema(INFO, "float16")
    batch = arrow.record_batch(documents, layout)
    texts = [{"id": n, "lang": "fra_Latn", "text": f"Un. Deux {n}.", "target": "X."} for n in "ab"]
    about = {"lcm.space": "tiny", "lcm.fingerprint": "f" * 16, "lcm.dim": str(DIM)}
    for document in documents:
        document.space = INFO
    files = {
        "a.txt": "Ein Satz. 日本語の文。 Noch einer.\n\nUn paragraphe, été.\r\n".encode() * 3,
        "a.jsonl": "\n".join(json.dumps(text) for text in texts).encode(),
        "b.jsonl": "\n".join(json.dumps(to_json(each)) for each in documents).encode(),
        "a.arrow": _ipc(pa.ipc.new_file, layout, [batch]),
        "a.arrows": _ipc(pa.ipc.new_stream, layout, [batch, batch]),
        "other.arrows": _other_types(),
    }
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_batches([batch]), sink)
    files["a.parquet"] = sink.getvalue()
    files["a.safetensors"] = _written(
        lambda path: tensors.write_document(documents[0], about, path)
    )
    return files


def _ipc(opened: Any, layout: pa.Schema, batches: list[pa.RecordBatch], **options: Any) -> bytes:
    sink = io.BytesIO()
    with opened(sink, layout, **options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def _other_types() -> bytes:
    """Return a compressed stream with the types that other programs use."""
    columns = {
        "id": pa.array([1, 2]),
        "lang": pa.array(["eng_Latn", "fra_Latn"]).dictionary_encode(),
        "text_sentences": pa.array([["A."], ["B.", "C."]], pa.large_list(pa.large_string())),
        "text_sentences_sonar_emb": pa.array(
            [[[1.0] * DIM], [[2.0] * DIM] * 2], pa.list_(pa.list_(pa.float64()))
        ),
        "split": pa.array(["train", None], pa.string_view()),
        "date": pa.array([0, 1], pa.timestamp("ns", "UTC")),
        "more": pa.array([{"a": 1}, None]),
        "price": pa.array([1, None]).cast(pa.decimal128(21, 2)),
        "kind": pa.array([b"abcd", b"efgh"], pa.binary(4)),
    }
    batch = pa.record_batch(columns)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    return _ipc(pa.ipc.new_stream, batch.schema, [batch], options=options)


def _written(write: Callable[[Path], object]) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


def _data_set() -> dict[str, bytes]:
    import tempfile

    from lcm_cli.documents.writing import open_writer

    with tempfile.TemporaryDirectory() as folder:
        with open_writer(f"{folder}/set", INFO) as writer:
            for document in sample():
                writer.write(document)
        return _folder(Path(folder) / "set")


def _folder(folder: Path) -> dict[str, bytes]:
    names = (path for path in folder.iterdir() if path.is_file() and path.name != ".lock")
    wanted = {".json", ".safetensors", ".model", ".parquet"}
    return {path.name: path.read_bytes() for path in sorted(names) if path.suffix in wanted}


def _sharded(model: Path) -> dict[str, bytes]:
    """Return the files of a model whose weights are in two parts with an index."""
    from safetensors.numpy import load_file, save

    weights = load_file(model / "model.safetensors")
    names = sorted(weights)
    parts = {f"model-{n}.safetensors": names[n::2] for n in range(2)}
    index = {"weight_map": {name: part for part, names in parts.items() for name in names}}
    files = {part: save({name: weights[name] for name in names}) for part, names in parts.items()}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return files | {"config.json": (model / "config.json").read_bytes()}


def _text(path: Path) -> None:
    list(read([str(path)]))


def _any(path: Path) -> None:
    list(read_any([str(path)]))


def _concepts(path: Path) -> None:
    list(read_concepts([str(path)])[1])


def _describe(path: Path) -> None:
    if problems := describe(str(path))["problems"]:
        raise LcmError(problems[0])


_inspect = command("inspect", "PATH", "--json")


def _space(path: Path) -> None:
    from lcm_cli.space import load_space

    space = load_space(str(path), device="cpu")
    assert space.fingerprint
    encoded = space.encode(["The hen ran."], "eng_Latn")
    space.decode(encoded.concepts, ["eng_Latn"])


def _model(path: Path) -> None:
    from lcm_cli.models.checkpoint import load_model

    load_model(str(path), device="cpu")


def _recipe(path: Path) -> None:
    from lcm_cli.training.recipes.load import load_recipe
    from lcm_cli.training.recipes.model import ModelRecipe

    recipe = load_recipe(path)
    if isinstance(recipe, ModelRecipe):
        recipe.config({})


def _card(path: Path) -> None:
    from lcm_cli.hub.cards import card

    card(str(path))


_RECIPE = b"""\
kind = "model"
name = "small"
space = "tiny"
[data]
train = [{ path = "a/", split = "train", task = "summarize" }, "b/:0.5"]
validation = ["c/"]
batch_concepts = 2048
packing = true
[model]
architecture = "two_tower"
size = "5M"
max_length = 64
denoiser = { dropout = 0.2 }
prompts = { summarize = "[SUMMARY]:" }
[train]
steps = 3000
learning_rate = 1e-3
betas = [0.9, 0.95]
freeze = ["normalizer.*"]
optimizer = "muon"
[distill]
teacher = "runs/teacher"
layers = [[0, 1]]
hidden = 0.5
"""
_SPACE_RECIPE = b"""\
kind = "space"
name = "own"
languages = ["eng_Latn", "fra_Latn"]
licence = "MIT"
[data]
train = ["a.jsonl:2", "b.jsonl"]
dev = ["c.jsonl"]
[shape]
vocabulary = 500
dim = 64
heads = 4
tie = true
[train]
steps = 100
learning_rate = 3e-3
dropout = 0.1
"""
_SETTINGS = b"""\
device = "cpu"
batch-tokens = 512
quiet = true
[summarize]
length = "20%"
[languages]
json = true
[checkpoints.convert]
force = true
"""
_CARD = b"""\
name = "small"
kind = "space"
summary = "for tests"
licence = "MIT"
licence_note = "none"
languages = ["eng_Latn", "fra_Latn"]
checksums = "card"
[encoder]
layers = 2
model_dim = 32
[decoder]
layers = 2
[source.encoder]
url = "http://127.0.0.1:9/encoder.pt"
bytes = 1000
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
[source.decoder]
repo = "org/name"
revision = "main"
bytes = 1000
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
"""

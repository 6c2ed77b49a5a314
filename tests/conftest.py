"""Shared fixtures: an empty cache, servers with faults, small weights and a small trained model."""

import gc
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hub_server import HubServer
from hypothesis import settings
from processes import ForkServer

# Workers of pytest-xdist share the cores: one thread each, also for their child processes. A fork
# of a process that has used several OpenMP threads would hang, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, so that a change fails by its own fault;
# HYPOTHESIS_PROFILE=default draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

ROOT = Path(__file__).resolve().parent.parent

gc.disable()  # the imports of the tests leave no garbage


def pytest_collection_finish() -> None:
    """Exempt the modules' objects from garbage collection, which then takes little time."""
    gc.freeze()
    gc.enable()


@dataclass(frozen=True)
class Result:
    """The result of a run of `lcm`."""

    code: int
    output: bytes  # stdout
    stderr: str

    @property
    def stdout(self) -> str:
        return self.output.decode("utf-8")


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """An environment for `lcm` without the user's own settings."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("LCM_", "HF_"))}
    for name in ("FORCE_COLOR", "NO_COLOR"):
        ours.pop(name, None)
    homes = {"XDG_CONFIG_HOME": tmp_path / "config", "HF_HOME": tmp_path / "hf"}
    return ours | {"COLUMNS": "80"} | {name: str(path) for name, path in homes.items()}


@pytest.fixture
def lcm(surroundings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs `lcm` in this process.

    For example: lcm("decode", "-", input=b"...", LCM_DEVICE="cpu").
    """
    from lcm_cli.app import main

    def run(*args: str | Path, input: bytes = b"", **variables: str) -> Result:
        streams = {name: io.TextIOWrapper(io.BytesIO()) for name in ("stdout", "stderr")}
        streams["stdin"] = io.TextIOWrapper(io.BytesIO(input), encoding="utf-8")
        variables = surroundings | variables
        with monkeypatch.context() as patch, mock.patch.dict(os.environ, variables, clear=True):
            for name, stream in streams.items():
                patch.setattr(sys, name, stream)
            try:
                code = main([str(arg) for arg in args])
            except SystemExit as end:
                code = int(end.code or 0)
        written = {name: stream.detach() for name, stream in streams.items()}
        out, err = (written[name].getvalue() for name in ("stdout", "stderr"))
        return Result(code, out, err.decode("utf-8"))

    return run


@pytest.fixture
def lcm_process(surroundings: dict[str, str]) -> Callable[..., Result]:
    """Return a function that runs `python -m lcm_cli` in a new process, with the calls of `lcm`."""

    def run(*args: str | Path, input: bytes = b"", **variables: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "lcm_cli", *map(str, args)],
            cwd=ROOT, env=surroundings | variables, input=input, capture_output=True, timeout=120,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr.decode("utf-8"))

    return run


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """A process that has imported torch, to fork processes from."""
    with closing(ForkServer()) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up an empty cache; return lcm's folder in it."""
    home = tmp_path / "hf"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("FAIRSEQ2_CACHE_DIR", str(tmp_path / "fairseq2"))
    for name in ("HF_HUB_CACHE", "LCM_CACHE", "LCM_SPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # --offline sets it: restored after the test
    return home / "lcm"


@pytest.fixture
def sonar_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cards of a sonar-space that has none yet, installed before any other."""
    folder = tmp_path / "site" / "sonar" / "cards"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "sonar"]:
        monkeypatch.delitem(sys.modules, name)
    return folder


@dataclass
class Fault:
    """The fault of one request; after `cut` bytes of the body the connection closes."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    length: int | None = None  # a false Content-Length
    pause: float = 0.0  # before each block of the body


class Server(http.server.ThreadingHTTPServer):
    """A server of `files` with ETags and ranges; a GET request uses up one fault of its path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.ranges = True
        self.chunked = False
        self.etag: Callable[[bytes], str] = lambda body: f'"{hash(body)}"'
        self.sent: dict[str, int] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range

    def fail(self, path: str, *faults: dict[str, Any]) -> None:
        """Answer the next requests for `path` with these faults, given as fields of Fault."""
        self.faults[path] = [Fault(**fault) for fault in faults]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect, which the tests provoke."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        wanted = self.headers.get("Range", "")
        self.path = self.path.partition("?")[0]
        self.server.requests.append((self.command, self.path, wanted))
        queue = self.server.faults.get(self.path) if with_body else None
        fault = queue.pop(0) if queue else Fault()
        body = self.server.files.get(self.path)
        if fault.status or body is None:
            return self._status(fault.status or 404, fault.headers)
        etag = self.server.etag(body)
        start = self._start(wanted, etag)
        if start > len(body) or (start and start == len(body)):
            return self._status(416, {"Content-Range": f"bytes */{len(body)}"})
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if etag:
            self.send_header("ETag", etag)
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            length = len(body) - start if fault.length is None else fault.length
            self.send_header("Content-Length", str(length))
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self._send(body[start:], fault)

    def _start(self, wanted: str, etag: str) -> int:
        fresh = self.headers.get("If-Range", etag) == etag
        if not (wanted and fresh and self.server.ranges):
            return 0
        return int(wanted.removeprefix("bytes=").partition("-")[0])

    def _send(self, body: bytes, fault: Fault) -> None:
        end = len(body) if fault.cut is None else min(fault.cut, len(body))
        size = 1 << 14
        for start in range(0, end, size):
            time.sleep(fault.pause)
            block = body[start : min(start + size, end)]
            # Counted before the client can have it, which may end the test.
            self.server.sent[self.path] = self.server.sent.get(self.path, 0) + len(block)
            self.wfile.write(
                b"%x\r\n%s\r\n" % (len(block), block) if self.server.chunked else block
            )
        if self.server.chunked and fault.cut is None:
            self.wfile.write(b"0\r\n\r\n")
        if fault.cut is not None or fault.length is not None:
            self.close_connection = True

    def _status(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server() -> Iterator[Server]:
    """A file server on loopback with faults on request."""
    with _running(Server()) as server:
        yield server


@pytest.fixture
def hub_server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hugging Face Hub on loopback; the real client uses it, with short waits."""
    with _running(HubServer()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        # The client reads the environment only once, when it is imported.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for place in ("file_download", "constants"):  # before release 1, and since then
            name = f"huggingface_hub.{place}.HUGGINGFACE_CO_URL_TEMPLATE"
            monkeypatch.setattr(name, template, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        sleep = time.sleep
        monkeypatch.setattr("time.sleep", lambda seconds: sleep(min(seconds, 0.02)))
        yield server
        server.over.set()
        with warnings.catch_warnings():  # after an error the client leaves its connections open
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        gc.freeze()  # the next collection has only that test's objects to look at


@contextmanager
def _running(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Official:
    """Small weights in the layout of the official files: encoder.pt, decoder.pt, spm.model."""

    folder: Path
    languages: tuple[str, ...]
    encoder: dict[str, int]
    decoder: dict[str, int]

    def state(self, role: str) -> dict[str, Any]:
        import torch

        loaded: dict[str, Any] = torch.load(self.folder / f"{role}.pt", weights_only=True)
        return loaded["model"]

    def card(self, path: Path, sources: Mapping[str, Mapping[str, str]], **fields: str) -> Path:
        """Write a card for spaces of these shapes, with the `sources` of its parts."""
        top = {"name": "small", "licence": "CC-BY-NC-4.0", "licence_note": "not for sale", **fields}
        lines = ['kind = "space"', 'summary = "for tests"', f"languages = {list(self.languages)}"]
        lines += [f'{key} = "{value}"' for key, value in top.items()]
        for role, shapes in (("encoder", self.encoder), ("decoder", self.decoder)):
            lines += [f"[{role}]", *(f"{key} = {value}" for key, value in shapes.items())]
        for role, source in sources.items():
            values = (f"{k} = {v}" if k == "bytes" else f'{k} = "{v}"' for k, v in source.items())
            lines += [f"[source.{role}]", *values]
        path.write_text("\n".join(lines).replace("'", '"'), encoding="utf-8")
        return path


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Official:
    """Random weights of two layers, with the tensor names of sonar-space's models."""
    import torch

    from lcm_cli.transfer.converters.sonar import tensor_shapes

    folder = tmp_path_factory.mktemp("official")
    languages = ("eng_Latn", "fra_Latn", "deu_Latn", "jpn_Jpan")
    pieces = train_sentencepiece(folder / "spm.model")
    encoder = {"layers": 2, "model_dim": 16, "heads": 2, "ffn_dim": 32}
    encoder |= {"vocabulary": pieces + 1 + len(languages) + 3, "max_length": 34}
    decoder = encoder | {"concept_dim": 16, "max_length": 32}
    generator = torch.Generator().manual_seed(0)
    for role, shapes in (("encoder", encoder), ("decoder", decoder)):
        wanted = tensor_shapes(role, shapes).items()
        state = {name: torch.randn(shape, generator=generator) for name, shape in wanted}
        if role == "decoder":
            state["final_proj.weight"] = state["decoder_frontend.embed.weight"]
        torch.save({"model": state}, folder / f"{role}.pt")
    return Official(folder, languages, encoder, decoder)


def train_sentencepiece(path: Path) -> int:
    """Train a sentencepiece model of SONAR's kind on a little text; return its size."""
    import sentencepiece

    text = "the cat sleeps le chat dort die Katze schläft 猫 が 眠る and a dog und ein Hund"
    words = text.split()
    lines = [" ".join(words[i:] + words[: i // 2]) for i in range(len(words))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(path.with_suffix("")), vocab_size=60,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    size: int = sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()
    return size


@pytest.fixture(scope="session")
def random_space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a space with the languages of `tiny` and random weights."""
    import torch
    from safetensors.torch import save_file

    from lcm_cli.space.tokenizer import EOS
    from lcm_cli.transfer.converters.sonar import tensor_shapes

    folder = tmp_path_factory.mktemp("random")
    languages = ("eng_Latn", "deu_Latn", "fra_Latn", "spa_Latn", "nld_Latn")
    shapes = {"layers": 2, "model_dim": 32, "heads": 4, "ffn_dim": 64, "max_length": 128}
    shapes["vocabulary"] = _train_on_examples(folder) + 1 + len(languages) + 3
    config = {"encoder": shapes, "decoder": shapes | {"concept_dim": 32}}
    generator = torch.Generator().manual_seed(1)
    for role, sizes in config.items():
        wanted = tensor_shapes(role, sizes).items()
        state = {k: torch.randn(shape, generator=generator) / 4 for k, shape in wanted}
        if role == "decoder":  # lean towards the end token, so that texts are short
            end = state["decoder_frontend.embed.weight"][EOS]
            state["decoder.layer_norm.bias"] += end / end.norm()
        save_file(state, folder / f"{role}.safetensors")
    config |= {"kind": "space", "name": "random", "licence": "MIT", "languages": languages}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _train_on_examples(folder: Path) -> int:
    """Train a sentencepiece model on the examples; return its size."""
    import sentencepiece

    stories = sorted((ROOT / "examples").glob("*.txt"))
    lines = [line for story in stories for line in story.read_text("utf-8").splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), vocab_size=300,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path = folder / "tokenizer.model"
    size: int = sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()
    return size


STORIES = {  # of six sentences; a summary is the first and the fifth
    "cat": (
        "A small cat sat in the garden. It was a cold morning. The cat wanted some warm milk. "
        "It went to the door of the house. A girl opened the door. Now the cat sleeps by the fire."
    ),
    "boat": (
        "An old man had a red boat. He went to the river every day. One night there was a storm. "
        "The wind broke the boat. His sons built him a new one. The old man was very happy."
    ),
    "bird": (
        "Mary found a bird under a tree. The bird could not fly. She gave it water and bread. "
        "It stayed with her for two weeks. In spring the bird could fly again. Mary waved goodbye."
    ),
}

# Documents whose learned summaries are empty, repetitive and unrelated.
IDLE = ["My bicycle is new.", "I bought it last week.", "It was not cheap."]
LOOPING = ["Do you know this song?", "We sing it at school.", "Everybody likes it."] * 2
ASTRAY = ["He plays the piano.", "She likes music, too.", "They play together every evening."]


@dataclass(frozen=True)
class Taught:
    """A model that has memorized the answers for a few documents, good ones and bad ones.

    It summarizes each of STORIES by its first and fifth sentence, and the three summaries together
    by the first sentence of each story; it expands a first sentence to the whole story.
    """

    folder: Path
    stories: dict[str, list[str]]
    summaries: dict[str, list[str]]
    bad: dict[str, list[str]]  # documents with bad answers, by the reason for refusing these


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """Train a nano model in the bundled space, for some seconds."""
    import torch

    from lcm_cli.models.checkpoint import build, save
    from lcm_cli.models.config import SpaceRef, preset
    from lcm_cli.models.interface import Batch
    from lcm_cli.models.normalizer import fit
    from lcm_cli.space import load_space

    stories = {name: [f"{s}." for s in t[:-1].split(". ")] for name, t in STORIES.items()}
    summaries = {name: [story[0], story[4]] for name, story in stories.items()}
    all_of_them = [sentence for summary in summaries.values() for sentence in summary]
    pairs = [("summarize", stories[name], summaries[name]) for name in stories]
    pairs += [("expand", story[:1], story) for story in stories.values()]
    pairs += [
        ("summarize", all_of_them, [story[0] for story in stories.values()]),
        ("summarize", IDLE, []),
        ("summarize", LOOPING, ["One two three.", "Come and dance."] * 2),
        ("summarize", ASTRAY, ["Bring two kilos of potatoes.", "The train leaves at seven."]),
    ]
    space = load_space("tiny", device="cpu")
    prompts = {"summarize": "[SUMMARY]:", "expand": "[STORY]:"}
    common = {"concept_dim": space.dim, "max_length": 14, "prompts": prompts}
    config = preset("base", "nano", **common, space=SpaceRef(space.name, space.fingerprint))
    rows = [[*source, prompts[task], *target, config.end_text] for task, source, target in pairs]
    documents = [torch.from_numpy(space.encode(row, "eng_Latn").concepts) for row in rows]
    batch = Batch.of(documents, [len(source) + 1 for _, source, _ in pairs])
    torch.manual_seed(0)
    model: Any = build(config)
    model.normalizer = fit(documents, config.normalizer)
    model.eval()  # memorize: without dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(batch).mean.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("taught")
    save(model, folder)
    bad = {"empty": IDLE, "repetition": LOOPING, "unrelated": ASTRAY}
    return Taught(folder, stories, summaries, bad)

"""Fifty kills at random moments: what was written is absent, old or complete, and runs resume."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lcm_cli.documents import dataset, read_concepts
from lcm_cli.errors import IntegrityError
from lcm_cli.hub import cards, locate
from lcm_cli.training.states import read_state, states

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="kills and forks as Unix does"),
]
# Imports everything once, then forks a process for each call of `lcm`, with small shards.
HELPER = """
import json, os, signal, sys, time
import torch, torch._dynamo
from lcm_cli.app import main
from lcm_cli.documents import writing
from lcm_cli.space import load_space
from lcm_cli.training import fitting, loop, prepare
from lcm_cli.training.data import batches

torch.set_num_threads(1)
writing.open_writer.__wrapped__.__kwdefaults__ |= {"shard_bytes": 30_000, "save_seconds": 0.2}
space = load_space("tiny", device="cpu")
space.decode(space.encode(["Imports all modules."], "eng_Latn").concepts, ["eng_Latn"])
for line in sys.stdin:
    call = json.loads(line)
    begun = time.monotonic()
    if not (child := os.fork()):
        errors = os.open(call["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(errors, 1), os.dup2(errors, 2)
        os._exit(main(call["arguments"]))
    if call["seconds"] is not None:
        time.sleep(call["seconds"])
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, time.monotonic() - begun]), flush=True)
"""


class Lcm:
    """Calls of `lcm` in forked processes, which are killed at random moments."""

    def __init__(self, folder: Path, name: str) -> None:
        self.errors = folder / "errors.txt"
        self.killed = 0
        self._chance = Random(name)
        self._helper = subprocess.Popen(
            [sys.executable, "-c", HELPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, *arguments: Any) -> float:
        """Call `lcm` to its end; return the seconds that it took."""
        code, took = self._call(arguments, None)
        assert code == 0, self.errors.read_text()
        return took

    def kill(self, took: float, *arguments: Any) -> bool:
        """Call `lcm`, killed at a random moment of the `took` seconds; return whether it was."""
        code, _ = self._call(arguments, self._chance.uniform(0.02, 0.95) * took)
        assert code in (0, -signal.SIGKILL), self.errors.read_text()
        self.killed += code != 0
        return code != 0

    def _call(self, arguments: Any, seconds: float | None) -> tuple[int, float]:
        call = {"arguments": [*map(str, arguments)], "errors": str(self.errors), "seconds": seconds}
        assert self._helper.stdin and self._helper.stdout
        self._helper.stdin.write(json.dumps(call) + "\n")
        self._helper.stdin.flush()
        code, took = json.loads(self._helper.stdout.readline())
        return code, took

    def close(self) -> None:
        self._helper.communicate(timeout=60)


@pytest.fixture
def lcm_killed(
    cache: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[], Lcm]]:
    calls: list[Lcm] = []

    def start() -> Lcm:
        calls.append(Lcm(tmp_path, request.node.name))
        return calls[-1]

    yield start
    for each in calls:
        each.close()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def finished(folder: Path) -> bool:
    """Return whether all of a set was written, though its process may have been killed then."""
    return folder.exists() and dataset.read_manifest(folder) is not None


def test_embed(lcm_killed, tmp_path):
    lcm = lcm_killed()
    texts = (f"The hen ran {n} times. A dog slept on{' and on' * (n % 7)}." for n in range(200))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    command = ("embed", "a.jsonl", "--from", "en", "--device", "cpu", "-o")
    took = lcm.run(*command, "whole")
    whole = content(tmp_path / "whole")
    assert len(whole) > 4  # several shards
    round_number = resumed = 0
    while lcm.killed < 15:
        round_number += 1
        folder = tmp_path / f"set{round_number}"
        for _ in range(4):
            if not lcm.kill(took, *command, folder) or finished(folder):
                break
            if list(folder.glob("part-*.parquet")):
                with pytest.raises(IntegrityError, match="cut off"):
                    read_concepts([str(folder)])
        else:
            lcm.run(*command, folder)
        resumed += "resuming after " in lcm.errors.read_text()
        assert content(folder) == whole
    assert resumed


RECIPE = """
kind = "model"
name = "micro"
space = "tiny"
[data]
train = ["data.parquet"]
validation = ["data.parquet"]
batch_concepts = 60
[model]
architecture = "base"
size = "nano"
[train]
steps = 60
warmup = 4
save_every = 7
eval_every = 25
eval_documents = 2
ema = 0.9
"""


def test_train(lcm_killed, tmp_path):
    lcm = lcm_killed()
    lines = (f"The hen ran {n} times. A dog slept. It rains {n}. The end." for n in range(40))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    lcm.run("embed", "a.jsonl", "--from", "en", "-o", "data.parquet")
    (tmp_path / "micro.toml").write_text(RECIPE)
    command = ("train", "micro.toml", "--device", "cpu", "-o")
    took = lcm.run(*command, "whole")
    whole = trained(tmp_path / "whole")
    round_number = 0
    while lcm.killed < 12:
        round_number += 1
        folder = tmp_path / f"run{round_number}"
        for _ in range(3):
            if not lcm.kill(took, *command, folder, *resume(folder)):
                break
            if states(folder):
                assert read_state(folder)[0]["trainer"]["step"] > 0
        else:
            lcm.run(*command, folder, *resume(folder))
        assert trained(folder) == whole
        assert not list(folder.rglob("*.part*"))


def resume(folder: Path) -> list[str]:
    return ["--resume"] if states(folder) else []


def trained(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """Return the weights of a run, and its log without times."""
    timed = ("second", "minutes", "memory")
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    log = [{k: v for k, v in r.items() if not any(t in k for t in timed)} for r in records]
    return (folder / "model" / "model.safetensors").read_bytes(), log


def test_pull(lcm_killed, server, official, cache, tmp_path):
    lcm = lcm_killed()
    for path in official.folder.iterdir():
        server.files[f"/{path.name}"] = path.read_bytes()
    files = {"encoder": "encoder.pt", "decoder": "decoder.pt", "tokenizer": "spm.model"}
    urls = {role: {"url": server.url(f"/{file}")} for role, file in files.items()}
    card = official.card(tmp_path / "small.toml", urls)
    command = ("pull", card, "--accept-licence")

    def slowed() -> None:
        for file in files.values():
            server.fail(f"/{file}", {"pause": 0.05})

    slowed()
    took = lcm.run(*command)
    folder = cards.space_folder("small")
    whole = pulled(folder)
    while lcm.killed < 13:
        if folder.exists():
            folder.rename(tmp_path / f"old{time.monotonic_ns()}")
        for _ in range(3):
            slowed()
            if not lcm.kill(took, *command):
                break
            if cards.list_pulled():
                assert pulled(folder) == whole
        else:
            lcm.run(*command)
        assert pulled(folder) == whole
        assert locate.read_space(folder).name == "small"


def pulled(folder: Path) -> dict[str, bytes]:
    """Return the weights and the tokenizer of a pulled space."""
    return {name: data for name, data in content(folder).items() if not name.endswith(".json")}


def test_translate(lcm_killed, tmp_path):
    lcm = lcm_killed()
    lines = (f"The hen ran {n} times, and the dog slept." for n in range(60))
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    options = ("--one-per-line", "--from", "en", "--to", "fr", "--device", "cpu")
    command = ("translate", "a.txt", *options, "-o")
    took = lcm.run(*command, "whole.txt")
    whole = (tmp_path / "whole.txt").read_text()
    assert len(whole.splitlines()) == 60
    new, old = tmp_path / "new.txt", tmp_path / "old.txt"
    while lcm.killed < 10:
        new.unlink(missing_ok=True)
        if lcm.kill(took, *command, new):
            assert not new.exists() or new.read_text() == whole
        old.write_text("old\n")
        if lcm.kill(took, *command, old, "--force"):
            assert old.read_text() in ("old\n", whole)
    lcm.run(*command, old, "--force")
    assert old.read_text() == whole

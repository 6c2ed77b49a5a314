"""lcm embed --shard and --engine ray: a data set in shares."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import ForkServer
from rounding import additions, assert_near

from lcm_cli.documents import Document, read_concepts
from lcm_cli.documents.shares import folder_of
from lcm_cli.space import Space, load_space

Run = Callable[..., Any]
ROOT = Path(__file__).resolve().parent.parent.parent
COUNT = 3


@pytest.fixture(scope="module")
def space(random_space: Path) -> Space:
    return load_space(str(random_space), device="cpu")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with one large file of JSON Lines and three texts."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = ("The hen ran. The dog slept" + " on" * (n * n % 23) + "." for n in range(150))
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "many.jsonl").write_text("\n\n".join(lines) + "\n")
    for name in ("a", "b", "z"):
        (folder / f"{name}.txt").write_text(f"This is {name}. It rains.\n")
    return folder


def command(corpus: Path, target: Path, *more: str) -> list[str]:
    return ["embed", str(corpus), "-o", str(target), "--from", "en", "--dtype", "float32", *more]


def documents(path: Path) -> list[Document]:
    return list(read_concepts([str(path)])[1])


def assert_equal(divided: Path, whole: Path, space: Space) -> None:
    """Check that both have the same documents in the same order, with the same vectors."""
    ours, wanted = documents(divided), documents(whole)
    assert [each.id for each in ours] == [each.id for each in wanted]
    for each, other in zip(ours, wanted, strict=True):
        assert (each.sentences, each.lang) == (other.sentences, other.lang)
        assert each.concepts is not None and other.concepts is not None
        assert_near(each.concepts, other.concepts, additions(space.encoder))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_the_shares_are_the_undivided_data_set(
    road: Run, corpus: Path, space: Space, tmp_path: Path
) -> None:
    whole, divided = tmp_path / "whole", tmp_path / "divided"
    assert road(*command(corpus, whole)).code == 0
    for index in (2, 0):
        assert road(*command(corpus, divided, "--shard", f"{index}/{COUNT}")).code == 0
    refused = road("decode", divided, "--to", "en")
    assert (refused.code, "lacks some of its 3 shares: missing 1" in refused.stderr) == (5, True)
    lacking = road("inspect", divided, "--expect", COUNT, "--json")
    assert lacking.code == 5 and "missing 1" in lacking.stderr
    assert json.loads(lacking.stdout)["shares"] == {
        "count": 3, "finished": [0, 2], "unfinished": [], "missing": [1],
    }  # fmt: skip
    assert road(*command(corpus, divided, "--shard", f"1/{COUNT}")).code == 0
    assert_equal(divided, whole, space)
    sizes = [len(documents(folder_of(divided, index))) for index in range(COUNT)]
    assert min(sizes) > 30
    checked = road("inspect", divided, "--expect", COUNT, "--json")
    report = json.loads(checked.stdout)
    assert (checked.code, report["documents"], report["concepts"]) == (0, 153, 306)
    described = json.loads(road("inspect", divided, "--json").stdout)
    assert (described["kind"], described["documents"]) == ("dataset", 153)
    assert described["shares"]["finished"] == [0, 1, 2] and described["problems"] == []
    again = road(*command(corpus, divided, "--shard", f"1/{COUNT}"))
    assert (again.code, "is finished already" in again.stderr) == (0, True)


def test_lines_keep_their_numbers_and_errors(road: Run, tmp_path: Path) -> None:
    path, divided = tmp_path / "a.jsonl", tmp_path / "set"
    path.write_text('{"text": "A hen."}\n\nbroken\n{"text": "A dog."}\n{"text": "A cat."}\n')
    codes = []
    for index in range(9):  # more shares than lines: some are empty
        done = road("embed", path, "-o", divided, "--from", "en", "--shard", f"{index}/9")
        codes.append(done.code)
        assert done.code == 0 or "line 3" in done.stderr
    assert sorted(codes) == [0] * 8 + [1]
    assert [each.id for each in documents(divided)] == ["a.jsonl:1", "a.jsonl:4", "a.jsonl:5"]
    assert road("inspect", divided, "--expect", 9).code == 0


def test_other_commands_read_the_shares(road: Run, corpus: Path, tmp_path: Path) -> None:
    divided = tmp_path / "divided"
    for index in range(2):
        assert road(*command(corpus, divided, "--shard", f"{index}/2")).code == 0
    found = road("similar", corpus / "z.txt", "--in", divided, "--from", "en")
    assert found.code == 0, found.stderr
    assert road("index", divided, "-o", tmp_path / "index").code == 0
    mined = road("mine", divided, corpus / "z.txt", "--from", "en", "-o", tmp_path / "pairs.jsonl")
    assert mined.code == 0, mined.stderr
    judged = road("evaluate", "copy-last", "--task", "next-concept", "--data", divided, "--json")
    assert judged.code == 0, judged.stderr
    from lcm_cli.training.data.batches import ConceptData
    from lcm_cli.training.data_options import DataOptions

    options = DataOptions(train=(str(divided),), suffix=())
    with ConceptData(options, dim=32, max_length=64, seed=0) as data:
        assert data.documents == 153


@pytest.mark.parametrize(
    ("variables", "share"),
    [
        ({"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_COUNT": "3",
          "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_STEP": "1"}, "share-00001"),
        ({"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "3",
          "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "2"}, "share-00002"),
        ({"RANK": "1", "WORLD_SIZE": "3"}, "share-00001"),
    ],
)  # fmt: skip
def test_the_share_of_a_process(
    road: Run, corpus: Path, tmp_path: Path, variables: dict[str, str], share: str
) -> None:
    done = road(*command(corpus, tmp_path / "set"), **variables)
    assert done.code == 0, done.stderr
    assert "add --shard 0/1" in done.stderr
    assert [path.name for path in (tmp_path / "set").glob("share-*")] == [share]
    assert road(*command(corpus, tmp_path / "a.parquet"), **variables).code == 0
    assert len(documents(tmp_path / "a.parquet")) == 153  # a file is not divided
    assert road(*command(corpus, tmp_path / "all", "--shard", "0/1"), **variables).code == 0
    assert len(documents(tmp_path / "all")) == 153


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--shard", "3/3"], {}, "--shard 3/3 is out of range"),
        (["--shard", "0/0"], {}, "--shard 0/0 is out of range"),
        (["--shard", "3"], {}, "--shard 3 is not I/N"),
        ([], {"RANK": "4", "WORLD_SIZE": "3"}, "RANK/WORLD_SIZE 4/3 is out of range"),
        ([], {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2",
              "SLURM_ARRAY_TASK_MIN": "1"}, "6/2 is out of range"),
        (["--address", "auto"], {}, "--address needs --engine ray"),
        (["--engine", "ray", "--shard", "1/3"], {}, "--engine ray embeds all of them"),
        (["--engine", "ray", "--json"], {}, "--json cannot be used with --engine ray"),
    ],
)  # fmt: skip
def test_errors(
    road: Run, corpus: Path, tmp_path: Path, arguments: Any, variables: Any, message: str
) -> None:
    done = road(*command(corpus, tmp_path / "set", *arguments), **variables)
    assert (done.code, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "set").exists()


def test_a_share_needs_a_folder_and_files(road: Run, corpus: Path, tmp_path: Path) -> None:
    done = road(*command(corpus, tmp_path / "a.parquet", "--shard", "0/3"))
    assert (done.code, "needs a data set as its output" in done.stderr) == (2, True)
    done = road("embed", "-", "-o", tmp_path / "set", "--shard", "0/3", input=b"A hen.")
    assert (done.code, "is a stream" in done.stderr) == (2, True)
    done = road("embed", tmp_path / "nosuch", "-o", tmp_path / "set", "--shard", "0/3")
    assert (done.code, (tmp_path / "set").exists()) == (3, False)


def test_one_folder_holds_one_data_set(road: Run, corpus: Path, tmp_path: Path) -> None:
    divided, whole = tmp_path / "divided", tmp_path / "whole"
    assert road(*command(corpus, divided, "--shard", "0/3")).code == 0
    assert road(*command(corpus, whole)).code == 0
    other = corpus / "a.txt"
    for arguments, message in (
        (command(corpus, divided, "--shard", "0/4"), "is divided into 3 shares, not 4"),
        (command(other, divided, "--shard", "1/3"), "were made from other documents or options"),
        (
            command(corpus, divided, "--shard", "1/3", "--one-per-line"),
            "were made from other documents",
        ),
        (command(corpus, divided), "holds a data set in shares"),
        (command(corpus, divided, "--force"), "holds a data set in shares"),
        (command(corpus, whole, "--shard", "0/3"), "that is not divided into shares"),
        (command(corpus, whole, "--shard", "0/3", "--force"), "that is not divided into shares"),
        (command(corpus, corpus, "--shard", "0/3"), "is not a data set: it has"),
    ):
        done = road(*arguments)
        assert (done.code, message in done.stderr) == (2, True), done.stderr
    forced = road(*command(corpus, divided, "--shard", "0/3", "--force"))
    assert (forced.code, "embedded" in forced.stderr) == (0, True)


OFTEN_SAVED = """
import sys
from lcm_cli.documents import writing
writing.open_writer.__wrapped__.__kwdefaults__["save_seconds"] = 0.0
from lcm_cli.app import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_share_resumes_exactly(
    road: Run,
    random_space: Path,
    surroundings: dict[str, str],
    forks: ForkServer,
    tmp_path: Path,
) -> None:
    source = tmp_path / "a.jsonl"
    texts = ("The hen ran. The dog slept" + " on" * (n * n % 23) + "." for n in range(2000))
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    whole, often = tmp_path / "whole", tmp_path / "often"
    assert road(*command(source, whole, "--shard", "1/2")).code == 0
    env = surroundings | {"LCM_SPACE": str(random_space)}
    arguments = command(source, often, "--shard", "1/2")
    process = forks.start(*arguments, code=OFTEN_SAVED, env=env)
    share = folder_of(often, 1)
    while process.poll() is None and not (share / ".saved-00001.parquet").exists():
        time.sleep(0.001)
    busy = road(*arguments)
    process.kill()
    assert (busy.code, "is being written by another process" in busy.stderr) == (1, True)
    assert process.wait() == -signal.SIGKILL
    unfinished = road("inspect", often, "--expect", 2)
    assert (unfinished.code, "unfinished 1; missing 0" in unfinished.stderr) == (5, True)
    done = road(*arguments)
    assert (done.code, "resuming after " in done.stderr) == (0, True)
    assert content(share) == content(folder_of(whole, 1))


def test_ray_is_missing(
    road: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = road(*command(corpus, tmp_path / "set", "--engine", "ray"))
    assert done.code == 2
    assert "--engine ray needs ray" in done.stderr and "pip install 'lcm-cli[ray]'" in done.stderr


def test_nothing_answers_at_the_address(lcm_process: Run, corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"  # bound, and nobody listens
        ray = ("--engine", "ray", "--address", address)
        done = lcm_process(*command(corpus, tmp_path / "set", *ray))
    assert (done.code, f"no Ray cluster answers at {address}" in done.stderr) == (1, True)
    assert not (tmp_path / "set").exists()


def workers_in(folder: Path) -> list[int]:
    """Return the processes of Ray tasks that work in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            busy = b"_embed_share" in (path / "cmdline").read_bytes()
            if busy and (path / "cwd").readlink() == folder:
                found.append(int(path.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_ray_repeats_the_share_of_a_killed_worker(
    road: Run,
    random_space: Path,
    surroundings: dict[str, str],
    corpus: Path,
    space: Space,
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray")
    whole, divided = tmp_path / "whole", tmp_path / "divided"
    with (corpus / "many.jsonl").open("a") as file:
        file.writelines(
            '{"text": "A hen saw a dog' + " run" * (n % 20) + '."}\n' for n in range(4000)
        )
        file.write("broken\n")
    assert road(*command(corpus, whole)).code == 1
    env = surroundings | {"LCM_SPACE": str(random_space), "PYTHONPATH": str(ROOT)}
    ray = ("--engine", "ray", "--shard", "4")
    call = [sys.executable, "-m", "lcm_cli", *command(corpus, divided, *ray)]
    with subprocess.Popen(call, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as driver:
        killed: list[int] = []
        while driver.poll() is None and not killed:
            if any(path.is_dir() for path in divided.glob("share-*")):
                for pid in workers_in(tmp_path)[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.01)
        errors = driver.communicate(timeout=400)[1]
    assert (driver.returncode, len(killed)) == (1, 1), errors
    assert "error: share 3: " in errors and "many.jsonl line 4300" in errors
    assert "has 4 of 4 shares, with 4,153 documents" in errors
    assert_equal(divided, whole, space)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_script(
    surroundings: dict[str, str], random_space: Path, corpus: Path, tmp_path: Path
) -> None:
    """The script runs as a task of an array would run it; there is no Slurm here."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "lcm").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lcm_cli "$@"\n')
    (bin / "lcm").chmod(0o755)
    env = surroundings | {"PATH": f"{bin}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    env |= {"LCM_SPACE": str(random_space), "SHARES": "2"}
    script = [str(ROOT / "examples" / "slurm_embed.sh"), str(corpus), "set", "--from", "en"]
    for task in range(2):
        variables = env | {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"}
        done = subprocess.run(script, cwd=tmp_path, env=variables, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert len(documents(tmp_path / "set")) == 153
    done = subprocess.run(script[:1], env=env, capture_output=True, timeout=60)
    assert done.returncode == 2 and b"usage: sbatch" in done.stderr


@pytest.mark.slow
def test_the_datatrove_example(
    surroundings: dict[str, str], random_space: Path, tmp_path: Path
) -> None:
    pytest.importorskip("datatrove")
    folder = tmp_path / "web"
    folder.mkdir()
    for name in ("a", "b", "c"):
        text = "The hen ran. The dog slept in the house. " * 9
        lines = [
            {"text": text, "id": f"{name}-{n}", "metadata": {"language": "en"}} for n in (1, 2)
        ]
        lines += [{"text": "Too short.", "id": "x", "metadata": {"language": "en"}}]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    script = [sys.executable, str(ROOT / "examples" / "datatrove_embed.py"), "web", "set"]
    options = ["--tasks", "2", "--space", str(random_space), "--device", "cpu"]
    done = subprocess.run(
        script + options, cwd=tmp_path, env=surroundings, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = {each.id for each in documents(tmp_path / "set")}
    assert found == {f"{name}-{n}" for name in "abc" for n in (1, 2)}

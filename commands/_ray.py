"""lcm embed --engine ray: the shares of a data set as tasks of Ray."""

import io
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from lcm_cli import console
from lcm_cli.documents import dataset
from lcm_cli.documents.shares import check_division, folder_of, read_division, tally
from lcm_cli.documents.targets import find_target
from lcm_cli.errors import LcmError, UsageError
from lcm_cli.schema import counted

RETRIES = 3  # of a share whose worker died; errors of lcm are not retried
CONNECT_SECONDS = 5.0  # to wait for an address
STORE_BYTES = 100 << 20  # of a local Ray's object store, which the tasks do not use

Call = dict[str, Any]  # the arguments of lcm embed


def embed_shares(embed: Callable[..., None], call: Call) -> None:
    """Call `embed` for each share of a data set, as tasks of Ray; `call` holds its arguments.

    Raises UsageError if Ray is missing or the options
    do not fit, LcmError if no cluster answers; exits with 1 if a share could not be finished.
    """
    folder, wanted = _checked(call)
    start = time.perf_counter()
    with _connected(call["address"]) as ray:
        count, needs = _plan(ray, folder, wanted)
        check_division(folder, count)
        own = call | {"engine": "local", "address": None}
        task = ray.remote(max_retries=RETRIES, **needs)(_embed_share)
        place = str(Path.cwd())
        # Finished shares as well: each task checks that its share is of these documents.
        pending = {task.remote(embed, own, f"{i}/{count}", place): i for i in range(count)}
        failed = _follow(ray, pending)
    _report(folder, count, time.perf_counter() - start)
    if failed:
        raise typer.Exit(1)


def _checked(call: Call) -> tuple[Path, int | None]:
    """Return the folder of the data set, and the wanted number of shares if it is given."""
    if call["engine"] != "ray":
        raise UsageError("--address needs --engine ray", "add --engine ray")
    target, shard = call["output"], call["shard"]
    if target is None or find_target(target).kind != "dataset":
        raise UsageError("--engine ray needs a data set as its output", "name a folder: -o FOLDER")
    if call["json"]:
        raise UsageError("--json cannot be used with --engine ray", "leave it out")
    if shard is None:
        return Path(target), None
    if not shard.isdecimal() or not int(shard):
        raise UsageError(
            f"--shard {shard} names one share, but --engine ray embeds all of them",
            "give the number of shares: --shard 64",
        )
    return Path(target), int(shard)


def _plan(ray: Any, folder: Path, wanted: int | None) -> tuple[int, dict[str, int]]:
    """Return the number of shares, and the resources of the task of each.

    A task takes a GPU if the cluster has any, else a CPU. The number is that of a data set already
    begun, else one for each such device.
    """
    resources = ray.cluster_resources()
    device = "GPU" if resources.get("GPU") else "CPU"
    begun = read_division(folder)
    slots = max(1, int(resources.get(device, 1)))
    needs = {"num_gpus": 1} if device == "GPU" else {"num_cpus": 1}
    return wanted or (begun.count if begun else slots), needs


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Connect to a Ray cluster, or start one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use otherwise
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise UsageError("--engine ray needs ray", "pip install 'lcm-cli[ray]'") from error
    address = address or os.environ.get("RAY_ADDRESS")
    local: Call = (
        {} if address else {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    )
    if address:
        _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise _no_cluster(address or "this machine", error) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise LcmError unless something answers at HOST:PORT: Ray itself would try for long."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return  # auto, local or a name that Ray resolves
    if not port.isdecimal():
        raise UsageError(f"{address} is not the address of a Ray cluster", "give HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> LcmError:
    reason = " ".join(str(error).split())
    return LcmError(
        f"no Ray cluster answers at {address}: {reason}",
        "start one (ray start --head), check its token (RAY_AUTH_TOKEN), or leave --address out to"
        " run on this machine",
    )


def _embed_share(embed: Callable[..., None], call: Call, shard: str, cwd: str) -> tuple[int, str]:
    """Embed a share in a worker; return the exit code and the messages."""
    messages = io.StringIO()
    with redirect_stderr(messages):
        try:
            os.chdir(cwd)  # paths are relative to the folder in which the command was given
            embed(**call | {"shard": shard})
            code = 0
        except OSError as error:
            console.show_error(LcmError(str(error), "all machines must see the same files"))
            code = 1
        except LcmError as error:
            console.show_error(error)
            code = error.exit_code
        except typer.Exit as end:
            code = end.exit_code
    return code, messages.getvalue()


def _follow(ray: Any, pending: dict[Any, int]) -> int:
    """Wait for all tasks and show their messages; return the number of tasks that failed."""
    failed = 0
    with console.progress("embedding (shares)", len(pending)) as advance:
        while pending:
            (ended, *_), _ = ray.wait(list(pending), num_returns=1)
            index = pending.pop(ended)
            try:
                code, messages = ray.get(ended)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                code, messages = 1, f"error: its worker failed: {reason}"
            _show(index, messages)
            failed += code != 0
            advance()
    return failed


def _show(index: int, messages: str) -> None:
    """Show the errors and warnings of a share, without its other messages."""
    for line in messages.splitlines():
        kind, _, text = line.partition(": ")
        if kind == "error":
            console.show_error(LcmError(f"share {index}: {text}"))
        elif kind == "hint":
            console.info(line)
        elif kind == "warning":
            console.warn(f"share {index}: {text}")


def _report(folder: Path, count: int, seconds: float) -> None:
    finished = tally(folder, count).finished
    manifests = [dataset.read_manifest(folder_of(folder, index)) for index in finished]
    documents = sum(each.documents for each in manifests if each)
    console.info(
        f"{folder} has {len(finished)} of {counted(count, 'share')},"
        f" with {counted(documents, 'document')}, after {seconds:.1f} s"
    )

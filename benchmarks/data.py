"""Measure the reading of training data: concepts per second, and bytes read by eight processes.

    python benchmarks/data.py [--concepts 300000] [--folder FOLDER]

Writes a data set as `lcm embed` does (1024 numbers per concept, float16, documents of 2 to 200
sentences), drops its files from the page cache, and reads batches, or the first of eight
processes' share of each, as fast as possible. Then eight processes, two at a time, read their
shares of an epoch in batches of 57,344 concepts, with one reader and with eight, and count the
bytes that they read.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from lcm_cli.documents import Document, SpaceInfo, open_writer
from lcm_cli.training.data.batches import ConceptData
from lcm_cli.training.data_options import DataOptions
from lcm_cli.training.parallel import Share

DIM = 1024
WORDS = [f"word{number}" for number in range(17)]  # about a hundred characters


def main() -> None:
    """Write the data, then time several ways of reading them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--concepts", type=int, default=300_000)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "set"
        documents = write(path, options.concepts)
        size = sum(file.stat().st_size for file in path.iterdir())
        print(f"{options.concepts} concepts of {documents} documents, {size / 1e6:.0f} MB")
        ways: dict[str, dict[str, Any]] = {
            "plain": {},
            "packed": {"packing": True},
            "filtered": {"filter": 'lang == "eng_Latn" and len(sentences) >= 5'},
        }
        for name, more in ways.items():
            for workers in (1, 2):
                measure(path, f"{name}, {workers} threads", workers, Share(), **more)
            measure(path, f"{name}, 1 threads, as one of 8 processes", 1, Share(0, 8, 8), **more)
        for readers in (1, 8):
            read_together(path, readers, size)


def write(path: Path, concepts: int) -> int:
    """Write documents with `concepts` concepts in all; return the number of documents."""
    rng = np.random.default_rng(0)
    with open_writer(str(path), SpaceInfo("benchmark", "0" * 16, DIM)) as writer:
        for number in count():
            if concepts <= 0:
                return number
            length = min(concepts, int(np.clip(rng.lognormal(3, 0.8), 2, 200)))
            concepts -= length
            vectors = rng.standard_normal((length, DIM), dtype=np.float32) * 0.006
            sentences = [" ".join(rng.permutation(WORDS)) for _ in range(length)]
            writer.write(Document(str(number), "eng_Latn", "", sentences, concepts=vectors))
    raise AssertionError


def measure(path: Path, name: str, workers: int, share: Share, **more: Any) -> None:
    """Time an epoch and print the result."""
    forget(path)
    options = DataOptions((str(path),), suffix=(), **more)
    began = time.perf_counter()
    with ConceptData(options, dim=DIM, max_length=2048, seed=0, workers=workers) as data:
        opened = time.perf_counter()
        cpu = time.process_time()
        concepts = sum(
            int(data.micro_batches(number, share).lengths_B.sum())
            for number in range(data.batches_per_epoch)
        )
        seconds = time.perf_counter() - opened
        cpu = time.process_time() - cpu
        print(
            f"{name}: opened in {opened - began:.1f} s, {concepts / seconds:,.0f} concepts/s"
            f" ({concepts / cpu:,.0f} per second of processor time)"
        )


def read_together(path: Path, readers: int, size: int) -> None:
    """Print the bytes that each of eight processes reads in an epoch, and their processor time."""
    with ProcessPoolExecutor(2, get_context("spawn"), max_tasks_per_child=1) as pool:
        found = list(pool.map(read_share, [path] * 8, [readers] * 8, range(8)))
    scanned, read, seconds = zip(*found, strict=True)
    parts = " ".join(f"{each / size:.1%}" for each in read)
    print(
        f"{readers} readers: each of 8 processes reads {parts} of the data, "
        f"all {sum(read) / size:.2f} times the data, in {sum(seconds) / 8:.2f} s of processor time"
        f" (and {max(scanned) / size:.1%} to open them)"
    )


def read_share(path: Path, readers: int, rank: int) -> tuple[int, int, float]:
    """Read the first epoch as one of eight processes.

    Returns the bytes read to open the data and to read its share, and its processor time.
    """
    options = DataOptions((str(path),), batch_concepts=57344, suffix=(), readers=readers)
    began = bytes_read()
    with ConceptData(options, dim=DIM, max_length=2048, seed=0) as data:
        opened, cpu, share = bytes_read(), time.process_time(), Share(rank, 8, 8)
        for buffer in range(len(data._epoch(0))):  # without those of the second epoch
            data._load(data._epoch(0)[buffer], share)
        return opened - began, bytes_read() - opened, time.process_time() - cpu


def bytes_read() -> int:
    """Return how many bytes this process has read from files, cached or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


def forget(path: Path) -> None:
    """Drop the files from the page cache, so that they are read from disk."""
    for file in path.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()

"""Measure search in concept space: exact search by its speed, graphs by recall and build time.

    python benchmarks/search.py exact --rows 200000 --threads 1 2 [--widths 256 1024]
    python benchmarks/search.py graph SENTENCES.npy --rows 100000 1000000 [--threads 2]

`exact` compares lcm's search of float16 vectors with numpy (a matrix product and argpartition) and
with faiss (IndexFlatIP), both in float32. The programs take turns, so that the load of the machine
is the same for all, and the best of the rounds counts. Times are processor times, which depend
little on other programs, but wall-clock times for several threads, which wait for each other. Each
row also gives the prediction: bytes of the vectors / measured bandwidth for one query, operations /
measured speed of a matrix product for many.

`graph` reads real concepts (rows of a .npy file, unit length not required), adds noise to make as
many vectors as asked for, and compares faiss and usearch (pip install faiss-cpu usearch). The
result is a Markdown table for docs/search.md.
"""

import argparse
import functools
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lcm_cli.space.similarity import unit_length

QUERIES = 1000
NOISE = 0.5  # standard deviation of the added noise, as a multiple of that of the concepts


def main() -> None:
    """Run one of the two comparisons."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("exact", "graph"))
    parser.add_argument("sentences", nargs="?")
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="")  # a graph, in a process of its own
    options = parser.parse_args()
    if options.what == "exact":
        exact(options)
    elif options.only:
        measure_graph(options.only, options.sentences, options.rows[0], options.threads[0])
    else:
        graphs(options)


def exact(options: argparse.Namespace) -> None:
    """Print the speed of exact search: million rows per second, all queries together."""
    print("| width | threads | queries | predicted | lcm | numpy | faiss | ms, lcm |")
    print("|---|---|---|---|---|---|---|---|")
    for width in options.widths:
        for rows in options.rows:
            vectors = _random(rows, width)
            for threads in options.threads:
                for queries in options.queries:
                    print(_exact_row(vectors, queries, threads, options.rounds), flush=True)


def _exact_row(vectors: np.ndarray, queries: int, threads: int, rounds: int) -> str:
    import faiss
    import torch
    from threadpoolctl import threadpool_limits

    from lcm_cli.search.exact import Nearest

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    asked = _random(queries, vectors.shape[1], seed=1)
    half = vectors.astype(np.float16)
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)

    def ours() -> Any:
        nearest = Nearest(asked, 10)
        nearest.add(half)
        return nearest.found()[1]

    def with_numpy() -> Any:
        scores = asked @ vectors.T
        places = np.argpartition(-scores, 10, axis=1)[:, :10]
        best = np.take_along_axis(scores, places, axis=1)
        return np.take_along_axis(places, np.argsort(-best, axis=1), axis=1)

    ways: dict[str, Callable[[], Any]] = {
        "lcm": ours,
        "numpy": with_numpy,
        "faiss": lambda: flat.search(asked, 10)[1],
    }
    best = dict.fromkeys((*ways, "read", "multiply"), np.inf)
    block = _random(1024, vectors.shape[1])
    seconds = functools.partial(
        _seconds, clock=time.process_time if threads == 1 else time.perf_counter
    )
    bits = torch.from_numpy(half.view(np.int32))
    with threadpool_limits(threads):
        for _ in range(rounds):
            for name, way in ways.items():
                best[name] = min(best[name], seconds(way))
            # The bandwidth of a sequential read of the stored vectors.
            best["read"] = min(best["read"], seconds(bits.max))
            product = seconds(lambda: [block @ asked.T for _ in range(8)])
            best["multiply"] = min(best["multiply"], product * len(vectors) / 8192)
    predicted = max(best["read"], best["multiply"] if queries > 1 else 0.0)
    speeds = [len(vectors) / 1e6 / t for t in (predicted, *(best[name] for name in ways))]
    cells = [vectors.shape[1], threads, queries, *(f"{s:.2f}" for s in speeds)]
    return f"| {' | '.join(map(str, cells))} | {best['lcm'] * 1e3:.1f} |"


def graphs(options: argparse.Namespace) -> None:
    """Print build time, memory, speed and recall of each graph, each in its own process."""
    print("| rows | graph | build, CPU s | resident MB | file MB | queries/CPU s | recall@10 |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for rows in options.rows:
        for name in GRAPHS:
            command = [sys.executable, __file__, "graph", options.sentences, "--only", name]
            command += ["--rows", str(rows), "--threads", str(options.threads[0])]
            subprocess.run(command, check=True)


def measure_graph(name: str, sentences: str, rows: int, threads: int) -> None:
    """Build one graph and print its rows of the table, for several widths of the search."""
    vectors, asked = _noisy(np.load(sentences), rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    search, save = GRAPHS[name](vectors, threads)
    build = time.process_time() - began
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    path = Path(f"/tmp/graph-{name.split()[0]}-{rows}")
    save(str(path))
    size = path.stat().st_size / 1e6
    path.unlink()
    true = _truth(vectors, asked)
    for width in (64, 128, 256):
        found: list[Any] = []
        seconds = _seconds(lambda width=width, found=found: found.extend(search(asked, width)))
        hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, true, strict=True))
        cells = [rows, f"{name}, search {width}", f"{build:.0f}", f"{memory:.0f}", f"{size:.0f}"]
        cells += [f"{len(asked) / seconds:.0f}", f"{hits / true.size:.3f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def usearch_graph(dtype: str) -> Callable[..., Any]:
    """Return a builder of usearch's graph with vectors in `dtype`."""

    def build(vectors: np.ndarray, threads: int) -> Any:
        from usearch.index import Index

        index = Index(
            ndim=vectors.shape[1], metric="ip", dtype=dtype, connectivity=16, expansion_add=128
        )
        index.add(np.arange(len(vectors)), vectors.astype(np.float16), threads=threads)

        def search(asked: np.ndarray, width: int) -> Iterator[np.ndarray]:
            index.expansion_search = width
            return iter(index.search(asked.astype(np.float16), 10, threads=threads).keys)

        return search, index.save

    return build


def faiss_graph(kind: str) -> Callable[..., Any]:
    """Return a builder of faiss's graph with vectors of one of its ScalarQuantizer's kinds."""

    def build(vectors: np.ndarray, threads: int) -> Any:
        import faiss

        faiss.omp_set_num_threads(threads)
        index = faiss.IndexHNSWSQ(
            vectors.shape[1], getattr(faiss.ScalarQuantizer, kind), 16, faiss.METRIC_INNER_PRODUCT
        )
        index.hnsw.efConstruction = 128
        index.train(vectors[:100_000])
        index.add(vectors)

        def search(asked: np.ndarray, width: int) -> Any:
            index.hnsw.efSearch = width
            return index.search(asked, 10)[1]

        return search, lambda path: faiss.write_index(index, path)

    return build


GRAPHS: dict[str, Callable[..., Any]] = {
    "faiss float16": faiss_graph("QT_fp16"),
    "faiss int8": faiss_graph("QT_8bit"),
    "usearch float16": usearch_graph("f16"),
    "usearch int8": usearch_graph("i8"),
}


def _noisy(real: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors (rows, D) near the real ones, and real ones that are not among them."""
    rng = np.random.default_rng(0)
    real = real[rng.permutation(len(real))].astype(np.float32)
    asked, rest = real[:QUERIES], real[QUERIES:]
    scale = NOISE * rest.std(axis=0)
    vectors = np.empty((rows, real.shape[1]), np.float32)
    for start in range(0, rows, 10_000):
        part = vectors[start : start + 10_000]
        chosen = rest[rng.integers(len(rest), size=len(part))]
        noise = rng.standard_normal(part.shape, dtype=np.float32) * scale
        part[:] = unit_length(chosen + noise)
    return vectors, unit_length(asked)


def _truth(vectors: np.ndarray, asked: np.ndarray) -> np.ndarray:
    best, places = None, None
    for start in range(0, len(vectors), 50_000):
        scores = asked @ vectors[start : start + 50_000].T
        near = np.argpartition(-scores, 10, axis=1)[:, :10]
        scores = np.take_along_axis(scores, near, axis=1)
        near = near + start
        if best is not None:
            scores, near = np.hstack([best, scores]), np.hstack([places, near])
        order = np.argsort(-scores, axis=1)[:, :10]
        best, places = (np.take_along_axis(x, order, axis=1) for x in (scores, near))
    assert places is not None
    return places


def _random(rows: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit_length(rng.standard_normal((rows, width), dtype=np.float32))


def _seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    began = clock()
    work()
    return clock() - began


if __name__ == "__main__":
    main()

"""Counters and histograms in Prometheus's text format."""

import threading
from collections.abc import Callable, Iterator, Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


class Counter:
    """A number that only rises, for each combination of labels."""

    kind = "counter"

    def __init__(self, name: str, help: str) -> None:
        self.name, self.help = name, help
        self._values: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def add(self, n: float = 1, **labels: str) -> None:
        """Add `n` to the number with these labels."""
        key = tuple(labels.items())
        with self._lock:
            self._values[key] = self._values.get(key, 0) + n

    def lines(self) -> Iterator[str]:
        """Yield the samples."""
        with self._lock:
            values = dict(self._values)
        for labels, value in values.items():
            yield _sample(self.name, labels, value)


class Gauge:
    """A number that is read whenever the metrics are."""

    kind = "gauge"

    def __init__(self, name: str, help: str, read: Callable[[], float]) -> None:
        self.name, self.help, self._read = name, help, read

    def lines(self) -> Iterator[str]:
        """Yield the sample."""
        yield _sample(self.name, (), self._read())


class Histogram:
    """The distribution of a quantity over buckets, for each combination of labels."""

    kind = "histogram"

    def __init__(self, name: str, help: str, buckets: Sequence[float]) -> None:
        self.name, self.help, self._buckets = name, help, buckets
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, **labels: str) -> None:
        """Count `value` in every bucket whose bound it does not exceed."""
        key = tuple(labels.items())
        with self._lock:
            counts = self._counts.setdefault(key, [0] * (len(self._buckets) + 1))
            for n, bound in enumerate(self._buckets):
                counts[n] += value <= bound
            counts[-1] += 1
            self._sums[key] = self._sums.get(key, 0) + value

    def lines(self) -> Iterator[str]:
        """Yield the samples."""
        with self._lock:
            found = {key: (list(counts), self._sums[key]) for key, counts in self._counts.items()}
        for labels, (counts, total) in found.items():
            bounds = [*(f"{bound:g}" for bound in self._buckets), "+Inf"]
            for bound, count in zip(bounds, counts, strict=True):
                yield _sample(f"{self.name}_bucket", (*labels, ("le", bound)), count)
            yield _sample(f"{self.name}_sum", labels, total)
            yield _sample(f"{self.name}_count", labels, counts[-1])


class Metrics:
    """The metrics of a server. `queue` and `active` are read when the metrics are."""

    def __init__(self) -> None:
        self.queue: Callable[[], float] = lambda: 0
        self.active: Callable[[], float] = lambda: 0
        self.requests = Counter("lcm_requests_total", "Requests by path and status code.")
        self.seconds = Histogram(
            "lcm_request_seconds", "Duration of requests in seconds, by path.", SECONDS
        )
        self.encoded = Counter("lcm_sentences_encoded_total", "Sentences encoded.")
        self.decoded = Counter(
            "lcm_sentences_decoded_total", "Sentences decoded, once for each language."
        )
        self.batches = Histogram(
            "lcm_batch_sentences", "Sentences in a batch, by kind of work.", SIZES
        )
        self.jobs = Histogram("lcm_batch_jobs", "Jobs that share a batch, by kind of work.", SIZES)

    def text(self) -> str:
        """Return all metrics in Prometheus's text format."""
        metrics = (
            *(self.requests, self.seconds, self.encoded, self.decoded, self.batches, self.jobs),
            Gauge("lcm_queue_jobs", "Jobs waiting for a batch.", self.queue),
            Gauge("lcm_active_requests", "Requests accepted and not yet answered.", self.active),
        )
        lines = []
        for metric in metrics:
            lines.append(f"# HELP {metric.name} {metric.help}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines += metric.lines()
        return "\n".join(lines) + "\n"


def _sample(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{inner}}} {_number(value)}" if inner else f"{name} {_number(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    # "%g" has only six digits, too few for a counter.
    return repr(int(value) if value == int(value) else float(value))

"""Prometheus's own parser reads the metrics."""

import pytest

from lcm_cli.serving.metrics import Counter, Metrics


def test_the_format_is_prometheus():
    parser = pytest.importorskip("prometheus_client.parser")
    metrics = Metrics()
    metrics.requests.add(path="/translate", code="200")
    metrics.requests.add(2, path='/"\\\n', code="404")
    metrics.seconds.observe(0.02, path="/translate")
    metrics.seconds.observe(100, path="/translate")
    metrics.queue = lambda: 3
    families = {f.name: f for f in parser.text_string_to_metric_families(metrics.text())}
    requests = families["lcm_requests"].samples
    assert [(s.labels["path"], s.value) for s in requests] == [("/translate", 1), ('/"\\\n', 2)]
    buckets = {s.labels.get("le", s.name): s.value for s in families["lcm_request_seconds"].samples}
    assert buckets["0.01"] == 0 and buckets["0.025"] == 1 and buckets["60"] == 1
    assert buckets["+Inf"] == 2 and buckets["lcm_request_seconds_sum"] == pytest.approx(100.02)


def test_large_counts_are_exact():
    counter = Counter("n", "help")
    counter.add(123456789)
    assert list(counter.lines()) == ["n 123456789"]

"""Captured decoding steps, whose graphs a list of operators stands in for on the CPU."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from rounding import additions, assert_near
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lcm_cli import cuda_graph
from lcm_cli.cuda_graph import Repeated
from lcm_cli.errors import IntegrityError
from lcm_cli.space import beam_attention, captured, load_space, search
from lcm_cli.space.captured import CapturedSteps
from lcm_cli.space.decoder import DecoderCache, DecoderConfig, TextDecoder
from lcm_cli.space.logits import log_total
from lcm_cli.space.search import DecodeOptions, Hypothesis

LAYERS, HEADS, VOCABULARY = 2, 4, 300
HOST = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero"}


class Recorder(TorchDispatchMode):
    """Keeps the operators that are called, with the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.is_mutable:
            self._before.append((args[0], args[0].clone()))
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def undo(self) -> None:
        """Take back all changes: a capture computes nothing."""
        for place, before in reversed(self._before):
            place.copy_(before)
        self._before.clear()

    def replay(self) -> None:
        """Call the operators again: no other code runs, and all tensors keep their places."""
        for func, args, kwargs, out in self.calls:
            read = {storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            written = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            if func._schema.is_mutable:
                func(*args, **kwargs)
            elif not any(storage(t) in read for t in written):  # not a view
                again = tree_leaves(func(*args, **kwargs))
                for place, new in zip(tree_leaves(out), again, strict=True):
                    if isinstance(place, Tensor):
                        place.copy_(new)


def storage(tensor: Tensor) -> int:
    if tensor.is_mkldnn:  # packed weights, which nothing is a view of
        return id(tensor)
    return tensor.untyped_storage()._cdata


class Replayed(Repeated[Any]):
    """What a CUDA graph does, on the CPU: the first time real, then recorded, then replayed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._recorder: Recorder | None = None

    def __call__(self, work: Callable[[], Any]) -> Any:
        if self._first:
            self._first = False
            return work()
        if self._captured is None:
            with Recorder() as recorder:
                result = work()
            names = {str(func).split(".")[1] for func, *_ in recorder.calls}
            assert not HOST & names
            self._captured = recorder.replay, result
            recorder.undo()
            for output in result:
                output.fill_(torch.nan)
        replay, result = self._captured
        replay()
        return result


@pytest.fixture(scope="module")
def decoder() -> TextDecoder:
    torch.manual_seed(0)
    decoder = TextDecoder(DecoderConfig(LAYERS, 32, HEADS, 64, VOCABULARY, 32, 128)).eval()
    torch.nn.init.normal_(decoder.decoder_frontend.embed.weight, std=0.3)
    return decoder


@pytest.fixture
def small_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sentences leave, and rooms fill, in searches as short as those of the tests."""
    monkeypatch.setattr(captured, "ROOM", 8)
    monkeypatch.setattr(captured, "SHRINK", 2)
    monkeypatch.setattr(captured, "FEWEST_ROWS", 3)


def concepts(count: int, seed: int = 2) -> Tensor:
    return 3 * torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


def assert_same(
    found: Sequence[Sequence[Hypothesis]], wanted: Sequence[Sequence[Hypothesis]], terms: int
) -> None:
    assert [[h.ids for h in row] for row in found] == [[h.ids for h in row] for row in wanted]
    scores = [torch.tensor([h.score for row in rows for h in row]) for rows in (found, wanted)]
    assert_near(*scores, terms)


LIMITS = [2, 12, 5, 20, 7, 40, 3, 9, 20]


@pytest.mark.slow
@pytest.mark.usefixtures("small_graphs")
@pytest.mark.parametrize(
    "options",
    [
        DecodeOptions(beam=1),
        DecodeOptions(beam=3),
        DecodeOptions(beam=5, length_penalty=0.5, n_best=5),
        DecodeOptions(beam=2, min_tokens=9),
        DecodeOptions(beam=2, no_repeat_ngram=2, max_tokens=18),
    ],
)
def test_captured_steps_find_what_plain_ones_do(
    decoder: TextDecoder, options: DecodeOptions
) -> None:
    """In three batches of different sizes, whose graphs serve again."""
    steps = CapturedSteps(decoder, 9, options.beam, Replayed)
    for count, seed in ((9, 2), (4, 3), (9, 4)):
        given, languages, done = concepts(count, seed), list(range(10, 10 + count)), []
        wanted = search.search(decoder, given, languages, LIMITS[:count], options)
        found = search.search(
            decoder, given, languages, LIMITS[:count], options, finished=done.append, steps=steps
        )
        assert_same(found, wanted, additions(decoder))
        assert sum(done) == count
    sizes = {size for size, _ in steps._steps}
    assert steps.captured > 1
    assert max(sizes) == 9 and min(sizes) < 9
    assert len(steps._steps) <= 3 * len(sizes)


def test_a_decoder_that_does_not_score_the_language(decoder: TextDecoder) -> None:
    config = DecoderConfig(LAYERS, 32, HEADS, 64, VOCABULARY, 32, 128, scores_language=False)
    other = TextDecoder(config).eval()
    other.load_state_dict(decoder.state_dict())
    options, given = DecodeOptions(beam=3, max_tokens=12), concepts(3)
    steps = CapturedSteps(other, 3, 3, Replayed)
    found = search.search(other, given, [10, 11, 12], [12] * 3, options, steps=steps)
    wanted = search.search(other, given, [10, 11, 12], [12] * 3, options)
    assert_same(found, wanted, additions(decoder))


def test_a_full_room_and_the_most_tokens(decoder: TextDecoder) -> None:
    """The longest sentences that positions suffice for."""
    options, given = DecodeOptions(beam=2, min_tokens=126), concepts(2)
    steps = CapturedSteps(decoder, 2, 2, Replayed)
    found = search.search(decoder, given, [10, 11], [500] * 2, options, steps=steps)
    assert_same(found, search.search(decoder, given, [10, 11], [500] * 2, options), 2000)
    assert [room for _, room in steps._steps] == [32, 64, 128]
    assert len(found[0][0].ids) == 125


@pytest.mark.usefixtures("small_graphs")
def test_graphs_over_the_budget_are_dropped(
    decoder: TextDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "_budget", lambda device: 0)
    options, given, languages = DecodeOptions(beam=3), concepts(9), list(range(10, 19))
    steps = CapturedSteps(decoder, 9, 3, Replayed)
    found = search.search(decoder, given, languages, LIMITS, options, steps=steps)
    assert_same(
        found, search.search(decoder, given, languages, LIMITS, options), additions(decoder)
    )
    assert len(steps._steps) == 1


def test_numbers_that_are_not_finite_are_an_error(decoder: TextDecoder) -> None:
    given = concepts(3)
    given[1, 0] = torch.nan
    steps = CapturedSteps(decoder, 3, 2, Replayed)
    with pytest.raises(IntegrityError, match="not finite"):
        search.search(decoder, given, [10, 11, 12], [9] * 3, DecodeOptions(beam=2), steps=steps)
    # Nothing of them is left in the buffers.
    given, options = concepts(3), DecodeOptions(beam=2)
    found = search.search(decoder, given, [10, 11, 12], [9] * 3, options, steps=steps)
    wanted = search.search(decoder, given, [10, 11, 12], [9] * 3, options)
    assert_same(found, wanted, additions(decoder))


def test_rows_that_have_left_may_compute_anything(
    decoder: TextDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, options = concepts(4), DecodeOptions(beam=2, min_tokens=30)
    limits = [3, 20, 20, 20]
    wanted = search.search(decoder, given, [10, 11, 12, 13], limits, options)
    steps = CapturedSteps(decoder, 4, 2, Replayed)
    feed = CapturedSteps.feed

    def spoiled(self: CapturedSteps, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits, total = feed(self, ids)
        if self._length > 8:
            logits[:2], total[:2] = torch.nan, torch.nan
        return logits, total

    monkeypatch.setattr(CapturedSteps, "feed", spoiled)
    found = search.search(decoder, given, [10, 11, 12, 13], limits, options, steps=steps)
    assert_same(found, wanted, additions(decoder))


def test_joined_maps_are_the_three(decoder: TextDecoder) -> None:
    attention, x = decoder.decoder.layers[0].self_attn, torch.randn(7, 32)
    with torch.no_grad():
        apart, joined = attention.project(x), attention.project(x, attention.join())
    for a, b in zip(joined, apart, strict=True):
        assert_near(a, b, 32)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[CapturedSteps]]:
    """Let every search capture its steps."""
    made: list[CapturedSteps] = []

    def make(decoder: TextDecoder, most: int, beams: int) -> CapturedSteps:
        made.append(CapturedSteps(decoder, most, beams, Replayed))
        return made[-1]

    monkeypatch.setattr(search, "CapturedSteps", make)
    monkeypatch.setattr(search, "graphs_available", lambda device: True)
    yield made


def test_a_space_shares_the_steps_of_its_batches(on_cpu: list[CapturedSteps]) -> None:
    space = load_space("tiny", device="cpu", batch_tokens=64 * 5 * 3)
    texts = ["The dog sleeps.", "Tom bought three old books.", "It is late.", "She sings."]
    rows: np.ndarray = space.encode(texts, "eng_Latn").concepts
    found = space.decode(rows, ["deu_Latn", "eng_Latn"])
    assert len(on_cpu) == 1 and on_cpu[0].captured
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "graphs_available", lambda device: False)
        wanted = space.decode(rows, ["deu_Latn", "eng_Latn"])
    assert [[t.text for t in row] for row in found["deu_Latn"] + found["eng_Latn"]] == [
        [t.text for t in row] for row in wanted["deu_Latn"] + wanted["eng_Latn"]
    ]


def test_samples_and_short_searches_are_not_captured(
    decoder: TextDecoder, on_cpu: list[CapturedSteps]
) -> None:
    search.search(decoder, concepts(2), [10, 11], [20, 20], DecodeOptions(sample=True))
    search.search(decoder, concepts(2), [10, 11], [5, 3], DecodeOptions(beam=2))
    assert not on_cpu


def test_work_that_cannot_be_captured_is_done_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def record(*given: object) -> None:
        tried.append(given)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "record", record)
    monkeypatch.setattr(cuda_graph, "shared_pool", lambda device: None)
    monkeypatch.setattr(cuda_graph, "aside", lambda work, device: work())
    repeated, done = Repeated[None](torch.device("cpu")), list[str]()
    with pytest.warns(UserWarning, match="without a CUDA graph: operation not permitted"):
        for number in range(4):
            repeated(lambda: done.append("again"))
            assert len(done) == number + 1
            assert len(tried) == min(number, 1) and not repeated.captured


def on_gpu(decoder: TextDecoder, dtype: torch.dtype) -> TextDecoder:
    copy = TextDecoder(decoder.config).eval()
    copy.load_state_dict(decoder.state_dict())
    return copy.to("cuda", dtype)


@pytest.mark.gpu
@pytest.mark.usefixtures("small_graphs")
@pytest.mark.parametrize("beam", [1, 3])
def test_graphs_on_a_gpu_find_what_plain_steps_do(
    decoder: TextDecoder, beam: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, options = on_gpu(decoder, torch.float32), DecodeOptions(beam=beam)
    steps = CapturedSteps(network, 9, beam)
    for count, seed in ((9, 2), (4, 3), (9, 4)):
        given, languages = concepts(count, seed).cuda(), list(range(10, 10 + count))
        found = search.search(network, given, languages, LIMITS[:count], options, steps=steps)
        with monkeypatch.context() as patch:
            patch.setattr(search, "graphs_available", lambda device: False)
            wanted = search.search(network, given, languages, LIMITS[:count], options)
        assert [[h.ids for h in row] for row in found] == [[h.ids for h in row] for row in wanted]
    assert steps.captured > 1


@pytest.mark.gpu
@pytest.mark.usefixtures("small_graphs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_graphs_on_a_gpu_have_the_logits_of_plain_steps(
    decoder: TextDecoder, dtype: torch.dtype
) -> None:
    """Twice, through three rooms each time."""
    network, count, length = on_gpu(decoder, dtype), 6, 30
    given = concepts(count).to("cuda", dtype)
    tokens = torch.randint(4, VOCABULARY, (length, count), device="cuda")
    steps = CapturedSteps(network, count, 1)
    for _ in range(2):
        with torch.inference_mode():
            steps.start(given, 100)
            cross, cache = network.cross(given), DecoderCache(LAYERS, count)
            for ids in tokens:
                found, total = steps.feed(ids)
                wanted = network.step(ids, cross, cache)
                assert F.cosine_similarity(found.float(), wanted.float()).min() > 0.999
                torch.testing.assert_close(total, log_total(found))
    assert steps.captured == 3


@pytest.mark.gpu
@pytest.mark.usefixtures("small_graphs")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 3, 5])
def test_graphs_of_the_kernels_on_a_gpu_have_the_logits_of_plain_steps(
    width: int, dtype: torch.dtype
) -> None:
    """With heads that there is a kernel for, through three rooms, while beams branch and leave."""
    torch.manual_seed(0)
    network = on_gpu(TextDecoder(DecoderConfig(LAYERS, 32, 2, 64, VOCABULARY, 32, 128)), dtype)
    count, given = 6, concepts(6).to("cuda", dtype)
    steps = CapturedSteps(network, count, width)
    with torch.inference_mode():
        steps.start(given, 100)
        assert steps._current.cache._has_kernel == beam_attention.AVAILABLE
        cross = [t.repeat_interleave(width, dim=0) for t in network.cross(given)]
        cache = DecoderCache(LAYERS, count)
        for position in range(30):
            if position == 20:
                count = 2
                steps.keep([4, 1])
                cache.keep([4, 1])
                cross = [t.unflatten(0, (6, width))[[4, 1]].flatten(0, 1) for t in cross]
            parents = torch.randint(width if position else 1, (count, width)).cuda()
            steps.follow(parents)
            cache.follow(parents)
            ids = torch.randint(4, VOCABULARY, (count * width,)).cuda()
            found, total = steps.feed(ids)
            wanted = network.step(ids, cross, cache)
            assert F.cosine_similarity(found.float(), wanted.float()).min() > 0.999
            torch.testing.assert_close(total, found.double().logsumexp(1, keepdim=True).float())
    assert steps.captured

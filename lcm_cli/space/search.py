"""Decoding of concepts into sentences: beam search (greedy with a beam of 1) and sampling.

Beam search makes the same choices as fairseq2's, which sonar-space uses: each step considers 2 x B
candidates, a hypothesis finishes only from the first B, and its score is the sum of log
probabilities, with that of the language token (unless the decoder's config says otherwise), divided
by (length - 1) ** length_penalty. All rows advance together, whatever their sentence or language,
and leave the batch when finished.

On a GPU the steps of a beam search are CUDA graphs, and a step starts before the host knows which
sentences the last one has ended: those only keep their rows for a while.

Shapes: R rows, B beams, C candidates = 2 B, V vocabulary, D concept dim, P tokens so far.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lcm_cli.cuda_graph import available as graphs_available
from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.progress import Progress
from lcm_cli.space.captured import CapturedSteps
from lcm_cli.space.decoder import DecoderCache, TextDecoder
from lcm_cli.space.kernel_check import check_kernels
from lcm_cli.space.logits import largest, log_total
from lcm_cli.space.tokenizer import EOS, PAD
from lcm_cli.space.transformer import to_device

PROMPT = 2  # </s> and the language token
FEWEST_STEPS = 8  # of a search that captures them: a capture takes as long as a few steps


@dataclass(frozen=True)
class DecodeOptions:
    """Options for decoding concepts into text.

    `max_tokens` and `min_tokens` count generated tokens, including the end token. With `sample`,
    tokens are drawn from softmax(logits / temperature), restricted to the `top_k` most likely (0:
    all) and to the smallest set of probability `top_p`; the `n_best` sentences are then independent
    draws.

    Raises UsageError for a value out of range.
    """

    beam: int = 5
    n_best: int = 1
    max_tokens: int = 256
    min_tokens: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram: int = 0
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (
            ("beam", 1),
            ("n_best", 1),
            ("min_tokens", 1),
            ("max_tokens", 1),
        ):
            if getattr(self, name) < low:
                raise UsageError(f"{name} must be at least {low}, not {getattr(self, name)}")
        if self.min_tokens > self.max_tokens:
            raise UsageError(f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}")
        if not self.sample and self.n_best > self.beam:
            hint = f"raise the beam to {self.n_best}, or sample"
            raise UsageError(f"n_best {self.n_best} exceeds the beam of {self.beam}", hint)
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            given = f"temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}"
            hint = "choose temperature > 0, 0 < top_p <= 1, top_k >= 0 (0: all)"
            raise UsageError(f"sampling options out of range: {given}", hint)


@dataclass
class Hypothesis:
    """A generated sentence: its token ids without the end token, and its normalised log score."""

    ids: list[int]
    score: float


@dataclass
class _Beams:
    """The rows still being searched; tensors of R * B rows hold the beams of a row in sequence.

    Lists are on the host, so that reading them does not wait for the device.
    """

    rows: list[int]  # (R,) index of each row in the call
    limits: list[int]  # (R,) maximum number of tokens to generate
    tokens: Tensor  # (R * B, P)
    scores: Tensor  # (R, B) float32
    sound: Tensor  # (R, 1) whether all logits so far were finite
    cross: list[Tensor]  # (R * B, M) per layer; none where the cache is captured steps
    cache: DecoderCache | CapturedSteps = field(repr=False)

    def select(self, beams: Tensor, tokens: Tensor, scores: Tensor) -> None:
        """Continue beam `beams[r, b]` of each row with `tokens[r, b]`; all are (R, B).

        The first call widens the state from one beam per row to B.
        """
        first = torch.arange(len(beams), device=beams.device)[:, None] * self.width
        flat = (first + beams).flatten()
        # Beams of a row share their concept: only widening changes the cross-attention's rows.
        self.cross = [cross[flat] for cross in self.cross] if self.width == 1 else self.cross
        self.cache.follow(beams)
        self.tokens = torch.cat([self.tokens[flat], tokens.reshape(-1, 1)], dim=1)
        self.scores = scores

    def check(self, total_N1: Tensor) -> None:
        """Note which rows have logits that are not finite."""
        self.sound = self.sound & total_N1.isfinite().view(-1, self.width).all(1, keepdim=True)

    def unfinished(self, found: Sequence[Sequence[Hypothesis]], wanted: int) -> list[int]:
        """Return the rows below their limit that have fewer than `wanted` hypotheses.

        The last take the places of finished ones, so that only few must be moved.
        """
        going = [
            len(found[row]) < wanted and self.generated < limit
            for row, limit in zip(self.rows, self.limits, strict=True)
        ]
        count = sum(going)
        last = (r for r in range(count, len(going)) if going[r])
        return [r if going[r] else next(last) for r in range(count)]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self.rows, self.limits = [self.rows[r] for r in rows], [self.limits[r] for r in rows]
        keep = to_device(torch.tensor(rows), self.tokens.device)
        within = torch.arange(self.width, device=keep.device)
        flat = (keep[:, None] * self.width + within).flatten()
        self.tokens, self.scores = self.tokens[flat], self.scores[keep]
        self.sound = self.sound[keep]
        self.cross = [cross[flat] for cross in self.cross]
        self.cache.keep(rows)

    @property
    def width(self) -> int:
        return self.scores.shape[1]

    @property
    def generated(self) -> int:
        """How many tokens each row will have after this step, including the end token."""
        return self.tokens.shape[1] - PROMPT + 1


def search(
    decoder: TextDecoder,
    concepts_RD: Tensor,
    languages: Sequence[int],
    limits: Sequence[int],
    options: DecodeOptions,
    *,
    streams: Sequence[int] | None = None,
    finished: Progress = lambda rows: None,
    steps: CapturedSteps | None = None,
) -> list[list[Hypothesis]]:
    """Return the hypotheses of each row of concepts, best first, or one draw per row if sampling.

    `languages` are language token ids, `limits` the maximum number of tokens of each row, `streams`
    the numbers of the rows' random streams (default 0, 1, ...). `finished` is called with the
    number of rows whenever some are done. `steps` are the `captured_steps` of several calls.
    Raises IntegrityError if the decoder's output is not finite.
    """
    with torch.inference_mode():
        steps = steps or captured_steps(decoder, len(limits), limits, options)
        if steps:
            state = _start_ahead(decoder, concepts_RD, languages, limits, options, steps)
            found = _search_ahead(state, options, finished, steps)
            return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in found]
        state = _start(decoder, concepts_RD, languages, limits, options)
        if options.sample:
            numbers = range(len(languages)) if streams is None else streams
            return _sample(decoder, state, options, numbers, finished)
        found = _beam_search(decoder, state, options, finished)
    return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in found]


def captured_steps(
    decoder: TextDecoder, most: int, limits: Sequence[int], options: DecodeOptions
) -> CapturedSteps | None:
    """Return steps for searches of at most `most` rows each, if CUDA graphs make them faster."""
    device = decoder.decoder_frontend.embed.weight.device
    check_kernels(device)
    if options.sample or not graphs_available(device):
        return None
    if min(options.max_tokens, max(limits, default=0)) < FEWEST_STEPS:
        return None
    return CapturedSteps(decoder, most, options.beam)


def _start(
    decoder: TextDecoder,
    concepts_RD: Tensor,
    languages: Sequence[int],
    limits: Sequence[int],
    options: DecodeOptions,
) -> _Beams:
    """Feed the start token; return the state with one beam per row and the language to feed."""
    device = concepts_RD.device
    language_R = torch.tensor(languages, device=device)
    end_R = torch.full_like(language_R, EOS)
    cross = decoder.cross(concepts_RD)
    cache = DecoderCache(decoder.config.layers, len(languages))
    # Of the prompt, </s> [lang], the second token is fed by the first step of the search.
    first = decoder.step(end_R, cross, cache)
    total = log_total(first)
    score_R1 = _language_score(decoder, first, total, language_R)
    own = _own_limits(decoder, limits, options)
    tokens = torch.stack([end_R, language_R], dim=1)
    rows = list(range(len(languages)))
    return _Beams(rows, own, tokens, score_R1, total.isfinite(), cross, cache)


def _start_ahead(
    decoder: TextDecoder,
    concepts_RD: Tensor,
    languages: Sequence[int],
    limits: Sequence[int],
    options: DecodeOptions,
    steps: CapturedSteps,
) -> _Beams:
    """Feed the start token to captured steps; return the state with B beams per row.

    All beams of a row are the same: only the first can be continued, since the others score -inf.
    """
    width, own = options.beam, _own_limits(decoder, limits, options)
    language_R = torch.tensor(languages, device=concepts_RD.device)
    tokens = torch.stack([torch.full_like(language_R, EOS), language_R], dim=1)
    tokens = tokens.repeat_interleave(width, dim=0)
    # Fed are the prompt and what is generated, without the end token.
    steps.start(concepts_RD, PROMPT + max(own, default=1) - 1)
    logits, total = (t[::width] for t in steps.feed(tokens[:, 0]))
    scores = total.new_full((len(languages), width), -torch.inf)
    scores[:, :1] = _language_score(decoder, logits, total, language_R)
    rows = list(range(len(languages)))
    return _Beams(rows, own, tokens, scores, total.isfinite(), [], steps)


def _language_score(
    decoder: TextDecoder, logits_RV: Tensor, total_R1: Tensor, language_R: Tensor
) -> Tensor:
    """Return the score of the language token, (R, 1) float32."""
    if not decoder.config.scores_language:
        return torch.zeros_like(total_R1)
    return logits_RV.gather(1, language_R[:, None]).float() - total_R1


def _own_limits(decoder: TextDecoder, limits: Sequence[int], options: DecodeOptions) -> list[int]:
    """Return how many tokens each row may generate."""
    most = min(options.max_tokens, decoder.config.max_length - PROMPT)
    return [max(1, min(limit, most)) for limit in limits]


def _beam_search(
    decoder: TextDecoder,
    state: _Beams,
    options: DecodeOptions,
    finished: Progress,
) -> list[list[Hypothesis]]:
    found: list[list[Hypothesis]] = [[] for _ in range(len(state.rows))]
    while True:
        # No name holds the logits, so that they are freed before the next are computed.
        scores, beams, tokens = _candidates(state, _next_logits(decoder, state), options)
        _collect(found, _Ends.of(state, scores, beams, tokens, options), options)
        rows = state.unfinished(found, options.beam)
        done = len(state.rows) - len(rows)
        if done:
            finished(done)
        if not rows:
            return found
        state.select(*_going(scores, beams, tokens, options))
        if done:
            state.keep(rows)


def _search_ahead(
    state: _Beams, options: DecodeOptions, finished: Progress, steps: CapturedSteps
) -> list[list[Hypothesis]]:
    """Do the same as `_beam_search` with captured steps, each launched before the last is read.

    What the host reads decides only which rows leave, not what the others do.
    """
    found: list[list[Hypothesis]] = [[] for _ in state.rows]
    left = dict(zip(state.rows, state.limits, strict=True))  # as far as the host has read
    outputs = steps.feed(state.tokens[:, -1])
    while True:
        scores, beams, tokens = _candidates(state, outputs, options)
        ends = _Ends.of(state, scores, beams, tokens, options).copied()
        state.select(*_going(scores, beams, tokens, options))
        if steps.gains(len(left)):
            state.keep([r for r, row in enumerate(state.rows) if row in left])
        if any(limit >= state.generated for limit in left.values()):
            outputs = steps.feed(state.tokens[:, -1])
        _collect(found, ends, options)
        done = [
            row
            for row, limit in left.items()
            if len(found[row]) >= options.beam or ends.generated >= limit
        ]
        for row in done:
            del left[row]
        if done:
            finished(len(done))
        if not left:
            return found


def _going(
    scores: Tensor, beams: Tensor, tokens: Tensor, options: DecodeOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return beams, tokens and scores of the first B candidates that do not end, (R, B) each.

    The stable sort keeps the best first. There are at least B: each beam has at most one end token
    among the 2 x B candidates.
    """
    going = (tokens == EOS).int().argsort(dim=1, stable=True)[:, : options.beam]
    return beams.gather(1, going), tokens.gather(1, going), scores.gather(1, going)


def _next_logits(decoder: TextDecoder, state: _Beams) -> tuple[Tensor, Tensor]:
    """Feed each row's newest token; return the next logits (R * B, V) and their `log_total`."""
    assert isinstance(state.cache, DecoderCache)
    logits_NV = decoder.step(state.tokens[:, -1], state.cross, state.cache)
    return logits_NV, log_total(logits_NV)


def _candidates(
    state: _Beams, outputs: tuple[Tensor, Tensor], options: DecodeOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the C best continuations of each row: scores, beams and tokens, (R, C) each."""
    count, width = 2 * options.beam, state.width
    # Tokens are forbidden after the softmax's denominator was computed, as in fairseq2: the
    # probabilities of the tokens left are not renormalized.
    logits_NV, total = outputs
    state.check(total)
    values, indices = largest(_restrict(logits_NV, state, options), count)
    scores = state.scores[:, :, None] + (values.float() - total).view(len(state.rows), width, -1)
    best = scores.flatten(1).topk(min(count, width * values.shape[1]), dim=1)
    tokens = indices.view(len(state.rows), -1).gather(1, best.indices)
    return best.values, best.indices // indices.shape[1], tokens


def _restrict(logits_NV: Tensor, state: _Beams, options: DecodeOptions) -> Tensor:
    """Forbid tokens in place: padding, repeats, an early end, and all but the end at the limit."""
    last = [limit == state.generated for limit in state.limits]
    if any(last):
        ends_N = logits_NV[:, EOS].clone()  # a sentence's own limit outranks min_tokens
    logits_NV[:, PAD] = -torch.inf
    if state.generated < options.min_tokens:
        logits_NV[:, EOS] = -torch.inf
    if options.no_repeat_ngram:
        _ban_repeats(logits_NV, state.tokens[:, PROMPT:], options.no_repeat_ngram)
    if any(last):
        last_N = torch.tensor(last).repeat_interleave(state.width).nonzero().flatten()
        last_N = to_device(last_N, logits_NV.device)
        logits_NV[last_N] = -torch.inf
        logits_NV[last_N, EOS] = ends_N[last_N]
    return logits_NV


def _ban_repeats(logits_NV: Tensor, tokens_NP: Tensor, size: int) -> None:
    """Forbid, in place, each token that would complete a run of `size` tokens seen before."""
    for logits, tokens in zip(logits_NV, tokens_NP.tolist(), strict=True):
        tail = tokens[len(tokens) - size + 1 :]
        for start in range(len(tokens) - size + 1):
            if tokens[start : start + size - 1] == tail:
                logits[tokens[start + size - 1]] = -torch.inf


@dataclass
class _Ends:
    """What the host reads of a step: the first B candidates of each row, and what precedes them."""

    rows: list[int]
    limits: list[int]
    generated: int  # tokens of a sentence that ends now, including the end token
    numbers: Tensor  # (4, R, B): scores, beams, tokens, and whether the row's logits were finite
    tokens: Tensor  # (R * B, P)
    ready: torch.cuda.Event | None = None  # the device has copied the tensors to the host

    @classmethod
    def of(
        cls, state: _Beams, scores: Tensor, beams: Tensor, tokens: Tensor, options: DecodeOptions
    ) -> "_Ends":
        first = [t[:, : options.beam].float() for t in (scores, beams, tokens)]
        # All numbers are exact in float32.
        numbers = torch.stack([*first, state.sound.float().expand_as(first[0])])
        return cls(state.rows, state.limits, state.generated, numbers, state.tokens)

    def copied(self) -> "_Ends":
        """Return this with its tensors on their way to the host, which need not wait for them."""
        if not self.numbers.is_cuda:
            return self
        numbers, tokens = (t.to("cpu", non_blocking=True) for t in (self.numbers, self.tokens))
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(self.numbers.device))
        return replace(self, numbers=numbers, tokens=tokens, ready=ready)

    def read(self) -> list[list[list[float]]]:
        """Return `numbers`. This is the one place where the host waits for the device."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.numbers.tolist()


def _collect(found: list[list[Hypothesis]], ends: _Ends, options: DecodeOptions) -> None:
    """Record the hypotheses that end among the first B candidates of each row.

    Rows that are finished already are passed over. Raises IntegrityError if the decoder's output is
    not finite.
    """
    ending, parents, ids, good = ends.read()
    going = [
        r
        for r, row in enumerate(ends.rows)
        if len(found[row]) < options.beam and ends.generated <= ends.limits[r]
    ]
    if not all(all(good[r]) for r in going):
        raise IntegrityError(
            "the decoder's output is not finite",
            "use --precision float32; if that does not help, check the concepts: lcm inspect FILE",
        )
    ended = [
        (row, place)
        for row in going
        for place, token in enumerate(ids[row])
        if token == EOS and math.isfinite(ending[row][place])
    ]
    if not ended:
        return
    width = len(ends.tokens) // len(ends.rows)
    lines = [row * width + int(parents[row][place]) for row, place in ended]
    texts = ends.tokens[lines, PROMPT:].tolist()
    length = ends.tokens.shape[1]  # tokens of the prompt and the sentence, without the end token
    for (row, place), text in zip(ended, texts, strict=True):
        hypotheses = found[ends.rows[row]]
        if len(hypotheses) < options.beam:
            score = ending[row][place] / length**options.length_penalty
            hypotheses.append(Hypothesis(text, score))


def _sample(
    decoder: TextDecoder,
    state: _Beams,
    options: DecodeOptions,
    streams: Sequence[int],
    finished: Progress,
) -> list[list[Hypothesis]]:
    """Draw one sentence per row, each from its own generator, whatever else is in the batch."""
    found: list[list[Hypothesis]] = [[] for _ in streams]
    # The factor keeps the streams of neighbouring seeds apart, up to a million of them.
    generators = [
        torch.Generator().manual_seed((options.seed * 1_000_003 + s) % 2**63) for s in streams
    ]
    while True:
        logits, total = _next_logits(decoder, state)
        state.check(total)
        logits = _restrict(logits, state, options)
        uniform = torch.cat([torch.rand(1, generator=generators[r]) for r in state.rows])
        tokens = _draw(logits / options.temperature, uniform.to(logits.device), options)[:, None]
        # Scores leave temperature and truncation out, so that all settings are comparable.
        scores = state.scores + logits.gather(1, tokens) - total
        del logits  # before the next are computed
        _collect(found, _Ends.of(state, scores, torch.zeros_like(tokens), tokens, options), options)
        rows = state.unfinished(found, 1)
        done = len(state.rows) - len(rows)
        if done:
            finished(done)
        if not rows:
            return found
        state.select(torch.zeros_like(tokens), tokens, scores)
        if done:
            state.keep(rows)


def _draw(logits_RV: Tensor, uniform_R: Tensor, options: DecodeOptions) -> Tensor:
    """Draw a token per row from the truncated softmax by inverting its cumulative distribution."""
    size = min(options.top_k, logits_RV.shape[1]) if options.top_k else logits_RV.shape[1]
    values, indices = logits_RV.topk(size, dim=1)
    probabilities = values.softmax(dim=1)
    # Keep tokens while those before them have not reached top_p: the most likely always stays.
    before = probabilities.cumsum(dim=1) - probabilities
    probabilities = probabilities.masked_fill(before >= options.top_p, 0.0)
    cumulative = probabilities.cumsum(dim=1)
    # Scaling the uniform numbers by the total saves renormalizing; rounding may overshoot: clamp.
    place = torch.searchsorted(cumulative, uniform_R[:, None] * cumulative[:, -1:], right=True)
    return indices.gather(1, place.clamp(max=size - 1)).flatten()

"""Decoding of concepts into sentences: beam search (greedy with a beam of 1) and sampling.

Beam search makes the same choices as fairseq2's, which sonar-space uses: each step considers 2 x B
candidates, a hypothesis finishes only from the first B, and its score is the sum of log
probabilities, with that of the language token (unless the decoder's config says otherwise), divided
by (length - 1) ** length_penalty. All rows advance together, whatever their sentence or language,
and leave the batch when finished.

Shapes: R rows, B beams, C candidates = 2 B, V vocabulary, D concept dim, P tokens so far.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.progress import Progress
from lcm_cli.space.decoder import DecoderCache, TextDecoder
from lcm_cli.space.tokenizer import EOS, PAD
from lcm_cli.space.transformer import to_device

PROMPT = 2  # </s> and the language token


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
    sound: Tensor  # whether all logits so far were finite
    cross: list[Tensor]  # (R * B, M) per layer
    cache: DecoderCache = field(repr=False)

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
) -> list[list[Hypothesis]]:
    """Return the hypotheses of each row of concepts, best first, or one draw per row if sampling.

    `languages` are language token ids, `limits` the maximum number of tokens of each row, `streams`
    the numbers of the rows' random streams (default 0, 1, ...). `finished` is called with the
    number of rows whenever some are done. Raises IntegrityError if the decoder's output is not
    finite.
    """
    with torch.inference_mode():
        state = _start(decoder, concepts_RD, languages, limits, options)
        if options.sample:
            numbers = range(len(languages)) if streams is None else streams
            return _sample(decoder, state, options, numbers, finished)
        found = _beam_search(decoder, state, options, finished)
    return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in found]


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
    total = _log_total(first)
    if decoder.config.scores_language:
        score_R = first.gather(1, language_R[:, None]).float() - total
    else:
        score_R = torch.zeros_like(total)
    most = min(options.max_tokens, decoder.config.max_length - PROMPT)
    own = [max(1, min(limit, most)) for limit in limits]
    tokens = torch.stack([end_R, language_R], dim=1)
    rows = list(range(len(languages)))
    return _Beams(rows, own, tokens, score_R, total.isfinite().all(), cross, cache)


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
        _collect(found, state, scores, beams, tokens, options)
        rows = state.unfinished(found, options.beam)
        done = len(state.rows) - len(rows)
        if done:
            finished(done)
        if not rows:
            return found
        # Take the first B candidates that do not end; the stable sort keeps the best first. There
        # are at least B: each beam has at most one end token among the 2 x B candidates.
        going = (tokens == EOS).int().argsort(dim=1, stable=True)[:, : options.beam]
        state.select(*(t.gather(1, going) for t in (beams, tokens, scores)))
        if done:
            state.keep(rows)


def _next_logits(decoder: TextDecoder, state: _Beams) -> Tensor:
    """Feed each row's newest token; return the logits of the next, (R * B, V)."""
    return decoder.step(state.tokens[:, -1], state.cross, state.cache)


def _candidates(
    state: _Beams, logits_NV: Tensor, options: DecodeOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the C best continuations of each row: scores, beams and tokens, (R, C) each."""
    count, width = 2 * options.beam, state.width
    # Forbid tokens after computing the softmax's denominator, as in fairseq2: the probabilities of
    # the tokens left are not renormalized.
    total = _log_total(logits_NV)
    state.sound = state.sound & total.isfinite().all()
    values, indices = _largest(_restrict(logits_NV, state, options), count)
    scores = state.scores[:, :, None] + (values.float() - total).view(len(state.rows), width, -1)
    best = scores.flatten(1).topk(min(count, width * values.shape[1]), dim=1)
    tokens = indices.view(len(state.rows), -1).gather(1, best.indices)
    return best.values, best.indices // indices.shape[1], tokens


def _log_total(logits_NV: Tensor) -> Tensor:
    """Return the logarithm of the softmax's denominator, (N, 1) float32."""
    # A few rows at a time, so that the exponentials stay in cache: 8 MB on the CPU, 32 on a GPU.
    size = max(1, (1 << (23 if logits_NV.is_cuda else 21)) // logits_NV.shape[1])
    totals = []
    for part_nV in logits_NV.split(size):
        most_n1 = part_nV.amax(dim=1, keepdim=True).float()
        totals.append((part_nV - most_n1).exp_().sum(dim=1, keepdim=True).log_().add_(most_n1))
    return torch.cat(totals)


def _largest(logits_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest values of each row, largest first, and their columns.

    The largest lie in the groups of columns with the largest maxima: one fast pass finds these,
    and only they are sorted.
    """
    group = 64
    groups = logits_NV.shape[1] // group
    # With fewer groups, more than a quarter of the columns would be sorted anyway.
    if groups < 4 * count:
        top = logits_NV.topk(min(count, logits_NV.shape[1]), dim=1)
        return top.values, top.indices
    parts_NGg = logits_NV[:, : groups * group].unflatten(1, (groups, group))
    best_NC = parts_NGg.amax(dim=2).topk(count, dim=1, sorted=False).indices
    values = parts_NGg.gather(1, best_NC[..., None].expand(-1, -1, group)).flatten(1)
    rest = torch.arange(groups * group, logits_NV.shape[1], device=logits_NV.device)
    within = torch.arange(group, device=logits_NV.device)
    columns = (best_NC[..., None] * group + within).flatten(1)
    columns = torch.cat([columns, rest.expand(len(columns), -1)], dim=1)
    top = torch.cat([values, logits_NV[:, groups * group :]], dim=1).topk(count, dim=1)
    return top.values, columns.gather(1, top.indices)


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


def _collect(
    found: list[list[Hypothesis]],
    state: _Beams,
    scores: Tensor,
    beams: Tensor,
    tokens: Tensor,
    options: DecodeOptions,
) -> None:
    """Record the hypotheses that end among the first B candidates of each row.

    Raises IntegrityError if the decoder's output is not finite.
    """
    first = [t[:, : options.beam].float() for t in (scores, beams, tokens)]
    sound = state.sound.float().expand_as(first[0])
    # The one place where the host waits for the device. All numbers are exact in float32.
    ending, parents, ids, good = torch.stack([*first, sound]).tolist()
    if not all(map(all, good)):
        raise IntegrityError(
            "the decoder's output is not finite",
            "use --precision float32; if that does not help, check the concepts: lcm inspect FILE",
        )
    ended = [
        (row, place)
        for row in range(len(ids))
        for place, token in enumerate(ids[row])
        if token == EOS and math.isfinite(ending[row][place])
    ]
    if not ended:
        return
    lines = [row * state.width + int(parents[row][place]) for row, place in ended]
    texts = state.tokens[lines, PROMPT:].tolist()
    length = state.tokens.shape[1]  # tokens of the prompt and the sentence, without the end token
    for (row, place), text in zip(ended, texts, strict=True):
        hypotheses = found[state.rows[row]]
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
        logits = _next_logits(decoder, state)
        total = _log_total(logits)
        state.sound = state.sound & total.isfinite().all()
        logits = _restrict(logits, state, options)
        uniform = torch.cat([torch.rand(1, generator=generators[r]) for r in state.rows])
        tokens = _draw(logits / options.temperature, uniform.to(logits.device), options)[:, None]
        # Scores leave temperature and truncation out, so that all settings are comparable.
        scores = state.scores + logits.gather(1, tokens) - total
        del logits  # before the next are computed
        _collect(found, state, scores, torch.zeros_like(tokens), tokens, options)
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

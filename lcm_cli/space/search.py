"""Decoding of concepts into sentences: beam search (greedy with a beam of 1) and sampling.

Beam search makes the same choices as fairseq2's, which sonar-space uses: each step considers 2 x B
candidates, a hypothesis finishes only from the first B, and its score is the sum of log
probabilities, including that of the language token, divided by (length - 1) ** length_penalty. All
rows advance together, whatever their sentence or language, and leave the batch when finished.

Shapes: R rows, B beams, C candidates = 2 B, V vocabulary, D concept dim, P tokens so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.progress import Progress
from lcm_cli.space.decoder import DecoderCache, TextDecoder
from lcm_cli.space.tokenizer import EOS, PAD

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
    """The rows still being searched; tensors of R * B rows hold the beams of a row in sequence."""

    rows: Tensor  # (R,) index of each row in the call
    limits: Tensor  # (R,) maximum number of tokens to generate
    tokens: Tensor  # (R * B, P)
    scores: Tensor  # (R, B)
    cross: list[Tensor]  # (R * B, M) per layer
    cache: DecoderCache = field(repr=False)

    def select(self, beams: Tensor, tokens: Tensor, scores: Tensor) -> None:
        """Continue beam `beams[r, b]` of each row with `tokens[r, b]`; all are (R, B).

        The first call widens the state from one beam per row to B.
        """
        flat = (
            torch.arange(len(beams), device=beams.device)[:, None] * self.width + beams
        ).flatten()
        # Beams of a row share their concept: only widening changes the cross-attention's rows.
        self.cross = [cross[flat] for cross in self.cross] if self.width == 1 else self.cross
        # Reordering copies the whole cache: skip it where every beam continues itself.
        if not torch.equal(flat, torch.arange(len(self.tokens), device=flat.device)):
            self.cache.reorder(flat)
        self.tokens = torch.cat([self.tokens[flat], tokens.reshape(-1, 1)], dim=1)
        self.scores = scores

    def keep(self, alive: Tensor) -> None:
        """Drop the rows where `alive` (R,) is false."""
        flat = alive.repeat_interleave(self.width).nonzero().flatten()
        self.rows, self.limits = self.rows[alive], self.limits[alive]
        self.tokens, self.scores = self.tokens[flat], self.scores[alive]
        self.cross = [cross[flat] for cross in self.cross]
        self.cache.reorder(flat)

    @property
    def width(self) -> int:
        return self.scores.shape[1]


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
        state, logits = _start(decoder, concepts_RD, languages, limits, options)
        if options.sample:
            numbers = range(len(languages)) if streams is None else streams
            return _sample(decoder, state, logits, options, numbers, finished)
        found = _beam_search(decoder, state, logits, options, finished)
    return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in found]


def _start(
    decoder: TextDecoder,
    concepts_RD: Tensor,
    languages: Sequence[int],
    limits: Sequence[int],
    options: DecodeOptions,
) -> tuple[_Beams, Tensor]:
    """Feed the prompt; return the state with one beam per row, and the first logits (R, V)."""
    device = concepts_RD.device
    language_R = torch.tensor(languages, device=device)
    end_R = torch.full_like(language_R, EOS)
    cross, cache = decoder.cross(concepts_RD), DecoderCache(decoder.config.layers)
    first = decoder.step(end_R, cross, cache)
    # The language token is forced but its log probability counts, as in fairseq2.
    score_R = first.gather(1, language_R[:, None]) - _log_total(first)
    room = decoder.config.max_length - PROMPT
    limits_R = torch.tensor(limits, device=device).clamp(1, min(options.max_tokens, room))
    tokens = torch.stack([end_R, language_R], dim=1)
    rows = torch.arange(len(languages), device=device)
    state = _Beams(rows, limits_R, tokens, score_R, cross, cache)
    return state, decoder.step(language_R, cross, cache)


def _beam_search(
    decoder: TextDecoder,
    state: _Beams,
    logits: Tensor,
    options: DecodeOptions,
    finished: Progress,
) -> list[list[Hypothesis]]:
    found: list[list[Hypothesis]] = [[] for _ in range(len(state.rows))]
    while True:
        scores, beams, tokens = _candidates(state, logits, options)
        _collect(found, state, scores, beams, tokens, options)
        # A row leaves the batch at its limit, or once it has B finished hypotheses.
        last_R = state.limits <= state.tokens.shape[1] - PROMPT + 1
        full_R = torch.tensor([len(found[r]) >= options.beam for r in state.rows.tolist()])
        alive = ~(last_R | full_R.to(last_R.device))
        # Take the first B candidates that do not end; the stable sort keeps the best first. There
        # are at least B: each beam has at most one end token among the 2 x B candidates.
        going = (tokens == EOS).int().argsort(dim=1, stable=True)[:, : options.beam]
        state.select(*(t.gather(1, going) for t in (beams, tokens, scores)))
        if not alive.all():
            finished(int((~alive).sum()))
            state.keep(alive)
        if not len(state.rows):
            return found
        logits = decoder.step(state.tokens[:, -1], state.cross, state.cache)


def _candidates(
    state: _Beams, logits_NV: Tensor, options: DecodeOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the C best continuations of each row: scores, beams and tokens, (R, C) each."""
    count, width = 2 * options.beam, state.width
    # Forbid tokens after computing the softmax's denominator, as in fairseq2: the probabilities of
    # the tokens left are not renormalized.
    total = _log_total(logits_NV)
    top = _restrict(logits_NV, state, options).topk(min(count, logits_NV.shape[1]), dim=1)
    scores = state.scores[:, :, None] + (top.values - total).view(len(state.rows), width, -1)
    best = scores.flatten(1).topk(min(count, width * top.values.shape[1]), dim=1)
    tokens = top.indices.view(len(state.rows), -1).gather(1, best.indices)
    return best.values, best.indices // top.indices.shape[1], tokens


def _log_total(logits_NV: Tensor) -> Tensor:
    total = logits_NV.logsumexp(dim=1, keepdim=True)
    if not total.isfinite().all():
        raise IntegrityError(
            "the decoder's output is not finite",
            "use --precision float32; if that does not help, check the concepts: lcm inspect FILE",
        )
    return total


def _restrict(logits_NV: Tensor, state: _Beams, options: DecodeOptions) -> Tensor:
    """Forbid tokens in place: padding, repeats, an early end, and all but the end at the limit."""
    generated = state.tokens.shape[1] - PROMPT + 1
    logits_NV[:, PAD] = -torch.inf
    if generated < options.min_tokens:
        logits_NV[:, EOS] = -torch.inf
    if options.no_repeat_ngram:
        _ban_repeats(logits_NV, state.tokens[:, PROMPT:], options.no_repeat_ngram)
    last = (state.limits <= generated).repeat_interleave(state.width)
    if last.any():
        ends = logits_NV[last, EOS]
        logits_NV[last] = -torch.inf
        logits_NV[last, EOS] = ends
    return logits_NV


def _ban_repeats(logits_NV: Tensor, tokens_NP: Tensor, size: int) -> None:
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
    """Record the hypotheses that end among the first B candidates of each row."""
    ended = (tokens[:, : options.beam] == EOS) & scores[:, : options.beam].isfinite()
    length = state.tokens.shape[1]  # tokens of the prompt and the sentence, without the end token
    for row, place in ended.nonzero().tolist():
        hypotheses = found[int(state.rows[row])]
        if len(hypotheses) < options.beam:
            beam = row * state.width + int(beams[row, place])
            ids = state.tokens[beam, PROMPT:].tolist()
            score = float(scores[row, place]) / length**options.length_penalty
            hypotheses.append(Hypothesis(ids, score))


def _sample(
    decoder: TextDecoder,
    state: _Beams,
    logits: Tensor,
    options: DecodeOptions,
    streams: Sequence[int],
    finished: Progress,
) -> list[list[Hypothesis]]:
    """Draw one sentence per row, each from its own generator, whatever else is in the batch."""
    found: list[list[Hypothesis]] = [[] for _ in streams]
    generators = [torch.Generator().manual_seed(options.seed * 1_000_003 + s) for s in streams]
    while len(state.rows):
        total = _log_total(logits)
        logits = _restrict(logits, state, options)
        uniform = torch.cat([torch.rand(1, generator=generators[r]) for r in state.rows.tolist()])
        tokens = _draw(logits / options.temperature, uniform.to(logits.device), options)[:, None]
        scores = state.scores + logits.gather(1, tokens) - total
        ended = (tokens == EOS).flatten()
        _collect(found, state, scores, torch.zeros_like(tokens), tokens, options)
        state.select(torch.zeros_like(tokens), tokens, scores)
        if ended.any():
            finished(int(ended.sum()))
            state.keep(~ended)
        if len(state.rows):
            logits = decoder.step(state.tokens[:, -1], state.cross, state.cache)
    return found


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

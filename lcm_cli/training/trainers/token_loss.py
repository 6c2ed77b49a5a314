"""The cross-entropy of sentences' tokens through a decoder: the loss of spaces and SONAR-LLMs.

    L_n = - sum over t of log p(token t of sentence n | the tokens before it, concept n)

under teacher forcing, with the language token given. SONAR-LLM (arXiv 2508.05305) predicts concepts
and learns from the frozen decoder's loss on them, so only the gradient of the concepts is needed.
It is computed together with the loss, for a few sentences at a time, and only their activations are
ever held in memory.

Shapes: N sentences, T tokens of all of them, D concept dim, M model dim, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lcm_cli.space import Space
from lcm_cli.space.decoder import DecoderConfig, TextDecoder
from lcm_cli.space.loading import load_weights
from lcm_cli.space.tokenizer import EOS
from lcm_cli.training.data.row_groups import Tokens

TOGETHER = 4096  # tokens decoded at once: about 6 GB of activations with SONAR's decoder


class TokenLoss:
    """The loss of predicted concepts, given the sentences to express, through a frozen decoder."""

    def __init__(self, space: Space) -> None:
        # A second copy: the space's own decoder is laid out for decoding and has no gradients.
        config = DecoderConfig(**space.files.config["decoder"])
        files, device = space.files, space.device
        self.decoder = load_weights(
            TextDecoder, config, files.decoder, device, torch.float32, files.adapter
        )

    def __call__(self, concepts_ND: Tensor, sentences: Sequence[Tokens]) -> Tensor:
        """Return the cross-entropy of each sentence in nats, (N,), differentiable in the concepts.

        `sentences` are [language] x </s>, cut off at the decoder's maximum length.
        """
        most = self.decoder.config.max_length
        rows = [sentence[:most].tolist() for sentence in sentences]
        found: Tensor = _Decoded.apply(concepts_ND, rows, self.decoder)  # type: ignore[no-untyped-call]
        return found


class _Decoded(torch.autograd.Function):
    """The cross-entropies; gradients are computed in the forward pass, one part at a time."""

    @staticmethod
    def forward(
        ctx: Any, concepts_ND: Tensor, rows: list[list[int]], decoder: TextDecoder
    ) -> Tensor:
        errors_N = concepts_ND.new_zeros(len(rows), dtype=torch.float32)
        grad_ND = torch.zeros_like(concepts_ND) if ctx.needs_input_grad[0] else None
        for part in _parts(rows):
            numbers = torch.tensor(part, device=concepts_ND.device)
            with torch.set_grad_enabled(grad_ND is not None), short_rows(concepts_ND.device):
                some_ND = concepts_ND.detach()[numbers].requires_grad_(grad_ND is not None)
                total, each_T = decoding_loss(decoder, some_ND, [rows[i] for i in part])
                if grad_ND is not None:
                    (grad_ND[numbers],) = torch.autograd.grad(total, some_ND)
            # All tokens of a row but the language's have a loss.
            lengths = torch.tensor([len(rows[i]) - 1 for i in part]).to(numbers.device)
            errors_N.index_add_(0, numbers.repeat_interleave(lengths), each_T)
        ctx.save_for_backward(grad_ND)
        return errors_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grad_outputs[0][:, None].to(grad_ND.dtype), None, None


def _parts(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield the numbers of rows of similar length, about TOGETHER tokens at a time."""
    part: list[int] = []
    for number in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if part and (len(part) + 1) * len(rows[number]) > TOGETHER:
            yield part
            part = []
        part.append(number)
    if part:
        yield part


def decoding_loss(
    decoder: TextDecoder, concepts_ND: Tensor, rows: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross-entropies of all tokens, and each of them, (T,), detached.

    `rows` are [language] x </s>, sorted by length for speed; the language token is not predicted.
    """
    hidden_TM = decoder(concepts_ND, [[EOS, *row[:-1]] for row in rows])
    device = hidden_TM.device
    wanted_T = torch.tensor([t for row in rows for t in (-1, *row[1:])], device=device)
    kept = (wanted_T >= 0).nonzero().flatten()
    return token_cross_entropy(decoder, hidden_TM[kept], wanted_T[kept])


def token_cross_entropy(
    decoder: TextDecoder,
    hidden_TM: Tensor,
    wanted_T: Tensor,
    smoothing: float = 0.0,
    *,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross-entropies of tokens, and each of them, (T,), detached.

    A position whose `wanted_T` is negative counts 0. With `smoothing` e the target distribution is
    (1 - e) for the wanted token, and e spread evenly over the vocabulary (Szegedy et al. 2016,
    section 7). `compiled` saves a GPU most passes over the logits, but takes seconds to compile for
    each number of tokens.
    """
    weight_VM = decoder.decoder_frontend.embed.weight
    device = hidden_TM.device
    if torch.is_autocast_enabled(device.type):
        lower = torch.get_autocast_dtype(device.type)
        hidden_TM, weight_VM = hidden_TM.to(lower), weight_VM.to(lower)
    loss: tuple[Tensor, Tensor] = _TiedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_TM, weight_VM, wanted_T, smoothing, compiled
    )
    return loss


class _TiedCrossEntropy(torch.autograd.Function):
    """Cross-entropies of linear logits: their sum, and each of them.

    The logits of all tokens would be by far the largest tensor of the step. Their gradient,
    softmax - target, needs only the logits, so a slice of tokens at a time goes through the forward
    and the backward pass while it is in cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TM: Tensor,
        weight_VM: Tensor,
        wanted_T: Tensor,
        smoothing: float,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        slopes = _compiled_slopes() if compiled else _slopes
        losses_T = hidden_TM.new_zeros(len(hidden_TM), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden_TM)
        vocabulary = len(weight_VM)
        # Half-precision kernels of GPUs are several times faster if rows begin at 16 bytes. The
        # weights of the spare tokens are 0, so that their logits affect no gradient.
        spare = -vocabulary % 8 if hidden_TM.is_cuda else 0
        weight_VM = functional.pad(weight_VM, (0, 0, 0, spare)) if spare else weight_VM
        # A frozen embedding needs no gradient, which would cost as much as everything else.
        grad_weight = torch.zeros_like(weight_VM).float() if ctx.needs_input_grad[1] else None
        for span in _slices(len(hidden_TM), weight_VM):
            counts_T1 = (wanted_T[span, None] >= 0).to(hidden_TM.dtype)
            h, y = hidden_TM[span] * counts_T1, wanted_T[span, None].clamp(min=0)
            losses_T1, grad = slopes(h @ weight_VM.T, y, vocabulary, smoothing)
            losses_T[span] = (losses_T1 * counts_T1)[:, 0]
            grad_hidden[span] = (grad @ weight_VM) * counts_T1
            if grad_weight is not None:
                grad_weight += grad.T @ h
        ctx.save_for_backward(
            grad_hidden, None if grad_weight is None else grad_weight[:vocabulary]
        )
        ctx.mark_non_differentiable(losses_T)
        return losses_T.sum(), losses_T

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        hidden = grad_hidden * scale.to(grad_hidden.dtype)
        weight = None if grad_weight is None else grad_weight * scale
        return hidden, weight, None, None, None


Slopes = Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor]]


def _slopes(
    raw_TV: Tensor, wanted_T1: Tensor, vocabulary: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each token, (T, 1) float32, and its gradient by the logits.

    Only the first `vocabulary` columns of the logits are tokens.
    """
    logits = raw_TV.float()
    own = logits[:, :vocabulary]
    logits[:, vocabulary:] = -torch.inf
    own.sub_(own.amax(dim=1, keepdim=True))  # keeps exp() from overflowing
    wanted = logits.gather(1, wanted_T1)
    if smoothing:
        wanted.lerp_(own.mean(dim=1, keepdim=True), smoothing)
    grad = logits.exp_()  # one pass of exponentials for loss and gradient
    total = grad.sum(dim=1, keepdim=True)
    losses = total.log() - wanted
    # softmax - (1 - smoothing) at the wanted token, - smoothing / V everywhere.
    grad.div_(total).scatter_add_(1, wanted_T1, torch.full_like(total, smoothing - 1.0))
    if smoothing:
        grad.sub_(smoothing / vocabulary)
    return losses, grad.to(raw_TV.dtype)


def _pure_slopes(
    raw_TV: Tensor, wanted_T1: Tensor, vocabulary: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return what `_slopes` does, changing nothing in place: compiled, it is two passes."""
    columns = torch.arange(raw_TV.shape[1], device=raw_TV.device)
    logits = raw_TV.float().masked_fill(columns >= vocabulary, -torch.inf)
    most = logits.amax(dim=1, keepdim=True)
    total = (logits - most).exp().sum(dim=1, keepdim=True)
    hit = columns == wanted_T1
    wanted = torch.where(hit, logits, 0.0).sum(dim=1, keepdim=True)
    if smoothing:
        own = torch.where(columns < vocabulary, logits, 0.0)
        wanted = wanted.lerp(own.sum(dim=1, keepdim=True) / vocabulary, smoothing)
    losses = total.log() + most - wanted
    grad = (logits - most).exp() / total - torch.where(hit, 1.0 - smoothing, 0.0)
    return losses, (grad - smoothing / vocabulary).to(raw_TV.dtype)


@cache
def _compiled_slopes() -> Slopes:
    compiled: Slopes = torch.compile(_pure_slopes, dynamic=False)
    return compiled


def _slices(tokens: int, weight_VM: Tensor) -> Iterator[slice]:
    """Yield slices of tokens to project at once: as many as fit a CPU's cache, or 1 GB of a GPU."""
    size = 512
    if weight_VM.is_cuda:
        most = max(512, (1 << 28) // len(weight_VM))
        size = -(-tokens // max(1, -(-tokens // most)))  # all slices of about one size
    for start in range(0, tokens, max(size, 1)):
        yield slice(start, start + size)


def short_rows(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which attention over short rows has a fast backward pass.

    On CPUs that of fused attention is ten times slower for rows as short as sentences.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()

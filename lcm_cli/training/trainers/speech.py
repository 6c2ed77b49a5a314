"""Train a speech encoder: speech to the concepts that a space's text encoder gives its text.

The space is the teacher and does not change (SONAR, Duquenne et al. 2023, section 4.2). The loss is
the mean squared distance to the concept of the text, and the cross-entropy of telling it by cosine
from those of other sentences (OmniSONAR, arXiv 2603.16606). Negatives cost little, since their
concepts are known.

A third loss spells the text's tokens from the frames below the pooling, by a map that only training
uses (CTC: Graves et al. 2006). Concepts alone tell a new network little about where words are.

The network learns concepts in units of their standard deviation, so that the same rates suit every
space; `export` folds the unit into its last map, which is linear.

Shapes: N utterances, L frames, F features of a frame, D concept dim, K negatives.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lcm_cli.evaluation.space_quality import xsim
from lcm_cli.progress import StartJob, no_progress
from lcm_cli.space import DecodeOptions, Space, load_space
from lcm_cli.space.loading import load_weights
from lcm_cli.space.similarity import row_cosines
from lcm_cli.speech.config import SpeechConfig, SpeechShapes
from lcm_cli.speech.encoder import SpeechEncoder
from lcm_cli.speech.speech import load_speech_encoder, save
from lcm_cli.training.data import utterances
from lcm_cli.training.data.utterances import STEPS, Noise, Utterances, mask, standardized
from lcm_cli.training.optim import (
    learning_rate,
    make_optimizers,
    set_rate,
    split_parameters,
)
from lcm_cli.training.parallel import World
from lcm_cli.training.recipes.speech import SpeechRecipe
from lcm_cli.training.trainers.averaging import AveragedWeights
from lcm_cli.training.trainers.concept_loss import concept_losses
from lcm_cli.training.trainers.space_parts import set_dropout

SAMPLED = 3  # utterances of which a sample shows what is heard
_LIMIT = 64  # tokens of a sample: early in training many do not end


class SpeechTrainer:
    """Network, optimizers and data of one run; `step` counts the batches done."""

    unit = "utterances"
    keep = 2
    patience = 0
    world = World()
    peak_flops: float | None = None

    def __init__(
        self,
        recipe: SpeechRecipe,
        config: SpeechConfig,
        network: SpeechEncoder,
        space: Space,
        data: Utterances,
        dev: Mapping[str, Utterances],
    ) -> None:
        self.recipe, self.config, self.space = recipe, config, space
        self.options = recipe.train
        self.network, self.data, self.dev = network, data, dev
        self.device = network.layer_norm.weight.device
        self.step = self.utterances = 0
        self.steps, self.save_every = self.options.steps, self.options.save_every
        self.eval_every, self.sample_every = self.options.eval_every, self.options.sample_every
        self._sigma = float(data.concepts_UD.std(axis=0).mean())
        # `start` computes concepts of the space; training works in units of their deviation.
        if recipe.start:
            self._scale(1 / self._sigma)
        self._targets_UD = torch.from_numpy(data.concepts_UD / self._sigma).to(self.device)
        self._noise = Noise(config.encoder.bins)
        self._epoch, self._first = -1, 0
        self._batches: list[np.ndarray] = []
        self._spelling = Spelling(network, space, data) if self.options.ctc else None
        self._trained = [network, self._spelling] if self._spelling else [network]
        matrices, others = split_parameters(self._trained)
        self.optimizers = make_optimizers(matrices, others, self.options)
        self.parameters = matrices + others
        self.average = AveragedWeights(self.parameters, self.options.ema)

    @property
    def summary(self) -> str:
        """Size of the network and of the data, in one line."""
        size, data = sum(p.numel() for p in self.network.parameters()), self.data
        left_out = f"; {data.left_out} too short or too long are left out" if data.left_out else ""
        return (
            f"{size / 1e6:.2f} M parameters, {len(data)} utterances, {data.hours:.2f} h{left_out}"
        )

    def train_step(self) -> dict[str, Any]:
        """Do one optimizer step; return its losses and the number of utterances."""
        o = self.options
        batch, draw = self._batch(), np.random.default_rng([o.seed, self.step])
        rate = learning_rate(self.step, o.steps, o.learning_rate, o.warmup, o.decay)
        for optimizer in self.optimizers:
            set_rate(optimizer, rate)
        # Dropout depends on seed and step alone, so that a resumed run draws the same.
        torch.manual_seed(int(draw.integers(1 << 62)))
        frames_NLF = self._frames(batch, draw).to(self.device)
        losses = self.losses(frames_NLF, batch, draw)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, o.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.follow(self.step)
        self.step += 1
        self.utterances += len(batch)
        found = {name: float(value.detach()) for name, value in losses.items()}
        return found | {"grad_norm": float(norm), "lr": rate, "utterances": len(batch)}

    def losses(
        self, frames_NLF: Tensor, batch_N: np.ndarray, draw: np.random.Generator
    ) -> dict[str, Tensor]:
        """Return the losses by name; `mse` is in units of the concepts' variance."""
        o = self.options
        lengths_N = torch.full((len(batch_N),), frames_NLF.shape[1])
        with self._fast_math():
            found_ND = self.network(frames_NLF, lengths_N).float()
        # They may include sentences of the batch, which `same_NC` excludes.
        others_K = draw.integers(len(self.data), size=min(o.negatives, len(self.data)))
        all_C = np.concatenate([batch_N, others_K])
        sentences_U = self.data.sentences_U
        same_NC = torch.from_numpy(sentences_U[batch_N][:, None] == sentences_U[all_C])
        mse, contrast = concept_losses(
            found_ND, self._targets_UD[torch.from_numpy(all_C)], same_NC.to(self.device)
        )
        losses = {"loss": mse + o.contrast * contrast, "mse": mse, "contrast": contrast}
        if self._spelling is not None:
            losses["ctc"] = self._spelling.loss(batch_N)
            losses["loss"] = losses["loss"] + o.ctc * losses["ctc"]
        return losses

    def _frames(self, batch: np.ndarray, draw: np.random.Generator) -> Tensor:
        """Return the frames (N, L, F) of a batch, with noise and masks."""
        o, shapes = self.options, self.config.encoder
        # Whole frames: a multiple of the stride.
        steps = -(-int(self.data.lengths_U[batch].max()) // shapes.stride) * shapes.stride
        mel_NTB = self.data.rows(batch, steps, draw)
        mel_NTB = self._noise.mixed(mel_NTB, o.noise, o.snr, draw)
        # Masks come last: 0 is then the mean of each band.
        return mask(standardized(mel_NTB, shapes.stride), shapes.bins, o.mask, draw)

    def _batch(self) -> np.ndarray:
        """Return the batch of the current step; begins the next epoch when one ends."""
        while self.step >= self._first + len(self._batches):
            self._first += len(self._batches)
            self._open_epoch(self._epoch + 1)
        return self._batches[self.step - self._first]

    def _open_epoch(self, number: int) -> None:
        self._epoch = number
        self._batches = self.data.batches(self.options.seed, number, self.options.batch_seconds)

    @contextmanager
    def _fast_math(self) -> Iterator[None]:
        lower = self.options.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=lower):
            yield

    def _scale(self, factor: float) -> None:
        """Multiply all concepts that the network computes by `factor`."""
        with torch.no_grad():
            self.network.encoder_pooler.projection_out.weight.mul_(factor)

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs to continue exactly.

        Batches, noise and masks are functions of the seed, the epoch and the step.
        """
        return {
            "step": self.step,
            "utterances": self.utterances,
            "epoch": self._epoch,
            "first": self._first,
            "network": self.network.state_dict(),
            "spelling": self._spelling.state_dict() if self._spelling else None,
            "average": self.average.weights,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def shards(self) -> None:
        """Return None: one process trains a speech encoder, so nothing is sharded."""

    def restore(self, state: dict[str, Any], shards: Path | None = None) -> None:
        """Restore `state`. Raises ValueError if `ema` was switched on or off."""
        self.average.check(state["average"])
        self.network.load_state_dict(state["network"])
        if self._spelling is not None:
            self._spelling.load_state_dict(state["spelling"])
        self.average.restore(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.utterances = state["step"], state["utterances"]
        self._first = state["first"]
        if state["epoch"] >= 0:
            self._open_epoch(state["epoch"])

    def export(self, folder: Path) -> Path:
        """Write the speech encoder to `folder`/speech."""
        hours = round(self.data.hours, 2)
        source = {"trained_by": "lcm train", "steps": self.step, "utterances": self.utterances}
        config = SpeechConfig(
            **{**vars(self.config), "source": source | {"hours of speech": hours}}
        )
        path = folder / "speech"
        with self.average.used([self.network]), self._in_space():
            save(self.network, config, path, force=True)
        return path

    @contextmanager
    def _in_space(self) -> Iterator[None]:
        """Let the network compute concepts of the space for a while."""
        last = self.network.encoder_pooler.projection_out.weight
        own = last.data
        try:
            last.data = own * self._sigma
            yield
        finally:
            last.data = own

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Export the encoder, and score it on the recipe's dev data.

        `loss` and `mse` are in units of the concepts' variance; `xsim` is the percentage of
        concepts that retrieve their text's, and the reverse. With several dev sets these are means.
        """
        self.export(folder)
        by_set = {name: self._scores(data) for name, data in self.dev.items()}
        if not by_set:
            return {}
        names = next(iter(by_set.values()))
        means = {n: float(np.mean([scores[n] for scores in by_set.values()])) for n in names}
        return {"eval": means, "by_set": by_set}

    def _scores(self, data: Utterances) -> dict[str, float]:
        found_UD, wanted_UD = self.concepts(data), data.concepts_UD
        mse = float(np.square(found_UD - wanted_UD).mean()) / self._sigma**2
        first = np.unique(data.sentences_U, return_index=True)[1]  # retrieval needs other texts
        return {
            "loss": mse,
            "cosine": float(row_cosines(found_UD, wanted_UD).mean()),
            "xsim": xsim(found_UD[first], wanted_UD[first]),
        }

    @torch.no_grad()
    def concepts(self, data: Utterances, only: slice = slice(None)) -> np.ndarray:
        """Return the concepts (U, D) of utterances, as the exported encoder would."""
        found = []
        with self.average.used([self.network]), self._in_space():
            for index in range(len(data))[only]:
                mel_1TB = torch.from_numpy(data.mel(index).astype(np.float32))[None]
                frames_1LF = standardized(mel_1TB, self.config.encoder.stride).to(self.device)
                lengths_1 = torch.tensor([frames_1LF.shape[1]])
                found.append(self.network(frames_1LF, lengths_1).float().cpu())
        return torch.cat(found).numpy()

    def sample(self) -> dict[str, Any]:
        """Return what is heard in a few utterances, of the first dev set or else in training."""
        data = next(iter(self.dev.values()), self.data)
        first = self.step * SAMPLED % max(1, len(data) - SAMPLED + 1)
        chosen = slice(first, first + SAMPLED)
        concepts_UD, texts = self.concepts(data, chosen), data.texts[chosen]
        limits = [_LIMIT] * len(texts)
        langs = sorted(set(data.langs[chosen]))
        decoded = self.space.decode(concepts_UD, langs, DecodeOptions(beam=1), limits=limits)
        heard = [decoded[lang][i][0].text for i, lang in enumerate(data.langs[chosen])]
        return {"sample": {"text": texts, "heard": heard}}


class Spelling(nn.Module):
    """A map from the frames that a network pools to the tokens of the text, and its loss.

    Shapes: V tokens that occur in the texts.
    """

    def __init__(self, network: SpeechEncoder, space: Space, data: Utterances) -> None:
        super().__init__()
        rows = [row[1:-1] for row in space.tokenize(data.texts, data.langs)]  # [lang] x </s>
        known = np.unique(np.concatenate(rows))
        self._rows = [torch.from_numpy(np.searchsorted(known, row) + 1) for row in rows]
        self.head = nn.Linear(network.config.model_dim, len(known) + 1)  # 0: no token
        self.head.to(network.layer_norm.weight.device)
        self._frames_NLM: Tensor | None = None
        network.encoder_pooler.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Not in evaluation, where no loss follows that would use them.
        self._frames_NLM = inputs[0] if self.training else None

    def loss(self, batch_N: np.ndarray) -> Tensor:
        """Return the mean cross-entropy per token of the texts of the network's last batch."""
        assert self._frames_NLM is not None
        log_NLV = self.head(self._frames_NLM).float().log_softmax(dim=-1)
        rows = [self._rows[index] for index in batch_N]
        frames_N, tokens_N = (torch.tensor([len(x) for x in each]) for each in (log_NLV, rows))
        # zero_infinity: the loss of a text with more tokens than frames is infinite.
        return functional.ctc_loss(
            log_NLV.transpose(0, 1), torch.cat(rows), frames_N, tokens_N, zero_infinity=True
        )


def make_speech_trainer(
    recipe: SpeechRecipe,
    folder: Path,
    device: torch.device,
    progress: StartJob = no_progress,
    most: int | None = None,
) -> SpeechTrainer:
    """Prepare a run in `folder`: space, network, data. Raises LcmErrors of all three.

    At most `most` utterances are read.
    """
    space = load_space(recipe.space, device=str(device))
    torch.manual_seed(recipe.train.seed)
    config, network = _network(recipe, space)
    set_dropout(network, recipe.train.dropout)
    shapes = config.encoder
    longest = min(int(recipe.train.max_seconds * STEPS), shapes.max_length * shapes.stride)
    limits = (max(2, shapes.stride), longest)  # a single step has no variance

    def read(paths: Sequence[str]) -> Utterances:
        table = utterances.tables(paths, config.languages)[:most]
        return utterances.prepare(
            table, space, shapes.bins, limits, folder / "utterances", progress
        )

    dev = {Path(path).stem: read([path]) for path in recipe.data.dev}
    data = read(recipe.data.train)
    return SpeechTrainer(recipe, config, network.to(device), space, data, dev)


def _network(recipe: SpeechRecipe, space: Space) -> tuple[SpeechConfig, SpeechEncoder]:
    """Return a new network, or that of `start`, in float32; raises IntegrityError for its space."""
    if not recipe.start:
        languages = tuple(space.find_language(code) for code in recipe.languages)
        shapes = SpeechShapes(**asdict(recipe.shape), concept_dim=space.dim)
        config = SpeechConfig(
            recipe.name, recipe.licence, languages, (space.name,), shapes, space.fingerprint
        )
        return config, SpeechEncoder(shapes).train()
    start = load_speech_encoder(recipe.start, device="cpu", precision="float32")
    start.check_space(space.name, space.fingerprint)
    shapes = start.config.encoder
    network = load_weights(
        SpeechEncoder, shapes, start.files.weights, torch.device("cpu"), torch.float32
    )
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()  # detach from the memory-mapped file
    config = SpeechConfig(
        recipe.name,
        recipe.licence or start.config.licence,
        recipe.languages or start.config.languages,
        (space.name,),
        shapes,
        space.fingerprint,
    )
    return config, network.requires_grad_(True).train()

"""Prepare a run from its recipe: space, data, model, normalizer, codebooks.

Shapes: N concepts, D concept dim.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lcm_cli.documents.document import SpaceInfo
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.hub.locate import locate_model
from lcm_cli.models import checkpoint
from lcm_cli.models.config import (
    BREAK_TEXT,
    AnyConfig,
    ModelConfig,
    QuantizerConfig,
    SonarLLMConfig,
    SpaceRef,
)
from lcm_cli.models.interface import ConceptModel
from lcm_cli.models.normalizer import fit
from lcm_cli.models.quant_lcm import QuantLCM, fit_quantizer
from lcm_cli.models.sonar_llm import SonarLLM
from lcm_cli.progress import Progress, StartJob, no_progress
from lcm_cli.space import Space, load_space
from lcm_cli.training.adapting import add_adapters
from lcm_cli.training.data.columns import Tokenize
from lcm_cli.training.data.row_groups import Tokens
from lcm_cli.training.data_options import DataOptions
from lcm_cli.training.loop import Trainer
from lcm_cli.training.parallel import World, join_processes
from lcm_cli.training.recipes.load import Trained
from lcm_cli.training.recipes.model import ModelRecipe
from lcm_cli.training.recipes.speech import SpeechRecipe
from lcm_cli.training.samples import Sampler
from lcm_cli.training.states import states
from lcm_cli.training.trainers.concept_model import ModelTrainer, TrainingData
from lcm_cli.weights import map_file
from lcm_cli.writing.writer import own_language

NORMALIZER, QUANTIZER = "normalizer", "quantizer"
FITTED = 200_000  # concepts on which a new model's normalizer and codebooks are fitted


class EndlessData(TrainingData, Protocol):
    """Training data whose batches repeat in epochs."""

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that contain all documents once."""

    @property
    def plans(self) -> bool:
        """Whether each paragraph has a plan; used only for data with breaks."""

    def close(self) -> None:
        """Release the files."""


def prepare_run(
    recipe: Trained,
    folder: Path,
    device: torch.device,
    progress: StartJob = no_progress,
) -> Trainer:
    """Prepare a run from its recipe. Raises LcmErrors of the recipe and its files."""
    world = join_processes()
    if isinstance(recipe, ModelRecipe):
        return make_trainer(recipe, folder, device, progress, world=world)
    if world.size > 1:
        what = "speech encoder" if isinstance(recipe, SpeechRecipe) else "space"
        raise UsageError(f"a {what} trains in one process, not in {world.size}")
    from lcm_cli.training.trainers import speech, text_space

    if isinstance(recipe, SpeechRecipe):
        return speech.make_speech_trainer(recipe, folder, device, progress)
    if recipe.distill is not None:
        from lcm_cli.training.trainers.space_student import make_student_trainer

        return make_student_trainer(recipe, device)
    return text_space.make_space_trainer(recipe, folder, device)


def make_trainer(
    recipe: ModelRecipe,
    folder: Path,
    device: torch.device,
    progress: StartJob = no_progress,
    data: EndlessData | None = None,
    *,
    fitted: bool = True,
    world: World | None = None,
) -> ModelTrainer:
    """Prepare a run in `folder`: space, data, model. Raises LcmErrors of all three.

    A new model's normalizer, and the codebooks of a Quant-LCM without a `quantizer` in the recipe,
    are fitted on the data first, unless a saved state has them, or `fitted` is false: then they
    keep their initial values, which suffices to measure time and memory.
    """
    space = load_space(recipe.space, device=str(device))
    start = None if not recipe.start else load_start(recipe.start)
    config = model_config(recipe, space, start)
    sampler = make_sampler(recipe, space, config, world or World())
    data = data or open_data(recipe.data, space, seed=recipe.train.seed, config=config)
    if recipe.data.plan:
        config = replace(config, plans=data.plans)
    # Here, so that initial weights do not depend on what was done before.
    torch.manual_seed(recipe.train.seed)
    model = new_model(config, start, recipe.start)
    if fitted and not states(folder):
        if recipe.normalizer or start is None:
            set_normalizer(model, recipe.normalizer, data, progress)
        if isinstance(model, QuantLCM) and (start is None or recipe.quantizer):
            set_quantizer(model, recipe.quantizer, data, recipe.train.seed, progress)
    adapter = None
    if recipe.adapter:
        files = locate_model(recipe.start)
        adapter = add_adapters([model], recipe.adapter, recipe.start, files, recipe.train.seed)
    add_token_loss(model, space)
    return ModelTrainer(
        model.to(device), data, recipe.train, sampler=sampler, world=world, adapter=adapter
    )


def make_sampler(recipe: ModelRecipe, space: Space, config: AnyConfig, world: World) -> Sampler:
    """Return a sampler, which decodes predictions; the first process also loads the judge.

    Raises UsageError without the package transformers, NotFoundError for an unknown judge.
    """
    lm, judge = None, recipe.train.judge
    if judge and world.leads:
        from lcm_cli.evaluation.judges import LanguageModel

        lm = LanguageModel(judge, str(space.device))
        try:
            lm.load()
        except LcmError as error:
            hint = f"{error.hint}; to train without a judge: --set train.judge="
            raise type(error)(f"train.judge: {error.message}", hint) from error
    return Sampler(space, recipe.train.sample_to, config.end_text, lm)


def load_start(source: str) -> ConceptModel:
    """Load a checkpoint to finetune or to learn from, by its name, its folder or its run's."""
    if source.startswith("runs/") and not Path(source).exists():  # looks like ORG/REPO
        hint = f"train it first: lcm train RECIPE.toml -o {source}"
        raise NotFoundError(f"there is no run in {source}", hint)
    return checkpoint.load_model(source, device="cpu")


def model_config(
    recipe: ModelRecipe, space: Space | SpaceInfo, start: ConceptModel | None = None
) -> AnyConfig:
    """Return the config of the model to train, which belongs to `space`.

    Raises the errors of `ModelRecipe.config`, and IntegrityError if `start` is of another space or
    the recipe has a quantizer that the model cannot use.
    """
    reference = {"name": space.name, "fingerprint": space.fingerprint}
    if start is not None:
        checkpoint.check_model_space(start.config, SpaceRef(**reference), space.dim)
    given = {"concept_dim": space.dim, "space": reference}
    config = recipe.config(given, None if start is None else start.config)
    if recipe.quantizer and config.architecture != "quant":
        raise IntegrityError(
            f"quantizer = {recipe.quantizer!r} is only for quant models",
            f'leave it out, or set model.architecture = "quant", not {config.architecture!r}',
        )
    if recipe.data.plan and not config.break_text:
        config = replace(config, break_text=BREAK_TEXT)
    return config


def new_model(config: AnyConfig, start: ConceptModel | None, source: str) -> ConceptModel:
    """Return a model of `config`, with the weights of `start` if there is one."""
    model = checkpoint.build(config)
    assert isinstance(model, ConceptModel)
    if start is not None:
        state = checkpoint.with_added(model, start.state_dict())
        checkpoint.check_state(model, state, f"{source} (changed by [model])")
        model.load_state_dict(state)
    return model


def add_token_loss(model: ConceptModel, space: Space) -> None:
    """Give a SONAR-LLM that learns from tokens the loss of its space's decoder."""
    if learns_tokens(model.config):
        from lcm_cli.training.trainers.token_loss import TokenLoss

        assert isinstance(model, SonarLLM)
        model.token_loss = TokenLoss(space)


def learns_tokens(config: AnyConfig | ModelConfig) -> bool:
    """Return whether a model of `config` learns from the tokens of sentences."""
    return isinstance(config, SonarLLMConfig) and config.loss == "tokens"


def tokenizing(space: Space) -> Tokenize:
    """Return the function that tokenizes sentences; its default language is the space's own.

    The function raises NotFoundError for a language that the space does not know.
    """
    tokenizer, find = space.tokenizer, cache(space.find_language)

    def tokenize(texts: Sequence[str], lang: str) -> list[Tokens]:
        code = find(lang) if lang else own_language(space)
        return [np.array(row, np.int32) for row in tokenizer.encode(texts, code)]

    return tokenize


def open_data(
    options: DataOptions, space: Space, *, seed: int, config: AnyConfig | None = None
) -> EndlessData:
    """Open the recipe's data for a model of `config`; without one, for concepts alone.

    Raises IntegrityError if they are of another space.
    """
    from lcm_cli.training.data.batches import ConceptData

    def encode(texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(space.encode(texts, own_language(space)).concepts)

    shape = config or ModelConfig()
    data = ConceptData(
        options,
        dim=space.dim,
        max_length=shape.max_length,
        seed=seed,
        encode=encode,
        prompts=shape.prompts,
        end_text=shape.end_text,
        break_text=shape.break_text or BREAK_TEXT,
        begin_text=shape.begin_text if isinstance(shape, SonarLLMConfig) else "",
        tokenize=tokenizing(space) if learns_tokens(shape) else None,
        fragility=weighs_fragility(shape),
    )
    theirs = data.space
    if theirs is not None and theirs.fingerprint not in ("", space.fingerprint):
        raise IntegrityError(
            f"the data are of the space {theirs.name} ({theirs.fingerprint}), "
            f"but the recipe names {space.name} ({space.fingerprint})",
            f'set space = "{theirs.name}" in the recipe, or embed the text again',
        )
    return data


def weighs_fragility(config: AnyConfig | ModelConfig) -> bool:
    """Return whether a model of `config` weighs its loss by the fragility of concepts."""
    return getattr(getattr(config, "objective", None), "weighting", "") == "fragility"


def concepts(data: EndlessData, limit: int) -> Iterator[Tensor]:
    """Yield the concepts (N, D) of batches, up to an epoch, until `limit` is reached."""
    seen = 0
    for number in range(data.batches_per_epoch):
        batch = data.batch(number)
        real_BS = batch.positions() < batch.lengths_B[:, None]
        found_ND = batch.concepts_BSD[real_BS].float()
        yield found_ND
        seen += len(found_ND)
        if seen >= limit:
            return


def set_normalizer(model: ConceptModel, source: str, data: EndlessData, progress: StartJob) -> None:
    """Give a model the normalizer from `source` or, without one, fit it on the data.

    Raises NotFoundError, or IntegrityError if it is of another space or method.
    """
    if source:
        state = read_normalizer(source, model.config)
        checkpoint.check_state(model.normalizer, state, source)
        model.normalizer.load_state_dict(state)
        return
    if model.config.normalizer.method == "none":
        return
    with progress("fitting the normalizer", FITTED) as advance:
        fitted = fit(counting(concepts(data, FITTED), advance), model.config.normalizer)
    model.normalizer.load_state_dict(fitted.state_dict())


def read_normalizer(source: str, config: AnyConfig) -> dict[str, Tensor]:
    """Return the state of a normalizer fitted by `lcm train`, from its folder or its run's.

    Raises NotFoundError, or IntegrityError if it does not suit a model of `config`.
    """
    folder = Path(source)
    folder = folder / NORMALIZER if (folder / NORMALIZER).is_dir() else folder
    file = folder / checkpoint.CONFIG
    if not file.is_file():
        raise NotFoundError(f"no normalizer at {source}: {file.name} is missing", _made(NORMALIZER))
    try:
        theirs = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"{file} is not the config of a normalizer: {error}") from error
    if theirs.get("kind") != NORMALIZER:
        raise IntegrityError(f"{source} is not a normalizer", _made(NORMALIZER))
    mine = asdict(config.normalizer)
    if different := [key for key, value in mine.items() if theirs.get(key) != value]:
        key = different[0]
        raise IntegrityError(
            f"{source} has {key} = {theirs.get(key)!r}, the recipe's model {mine[key]!r}",
            "change [model.normalizer] in the recipe, or name another normalizer",
        )
    space = theirs.get("space")
    fingerprint = space.get("fingerprint") if isinstance(space, dict) else None
    if fingerprint != config.space.fingerprint:
        raise IntegrityError(
            f"{source} was fitted in a different space ({fingerprint}) from "
            f"{config.space.name!r} ({config.space.fingerprint})",
            _made(NORMALIZER),
        )
    return map_file(folder / checkpoint.WEIGHTS)


def set_quantizer(
    model: QuantLCM, source: str, data: EndlessData, seed: int, progress: StartJob
) -> None:
    """Give a Quant-LCM the codebooks from `source` or, without one, fit them on the data.

    Raises NotFoundError, or IntegrityError if they are of other shapes or another space.
    """
    if source:
        state = read_quantizer(source, model.quantizer.config, model.config.space)
    else:
        state = fit_codebooks(model.quantizer.config, data, FITTED, 20, seed, progress)
    model.quantizer.load_state_dict(state)


def read_quantizer(source: str, config: QuantizerConfig, space: SpaceRef) -> dict[str, Tensor]:
    """Return the codebooks of a checkpoint, from its folder or its run's.

    Raises NotFoundError, or IntegrityError if they do not suit a model of `config` in `space`.
    """
    folder = Path(source)
    folder = folder / QUANTIZER if (folder / QUANTIZER).is_dir() else folder
    if folder.exists() and not (folder / checkpoint.CONFIG).is_file():
        missing = f"no quantizer at {source}: {checkpoint.CONFIG} is missing"
        raise NotFoundError(missing, _made(QUANTIZER))
    found = checkpoint.load_quantizer(folder)
    theirs = found.config
    # Check the space before concept_dim: in another space it may differ, and no recipe sets it.
    if theirs.space.fingerprint not in ("", space.fingerprint):
        raise IntegrityError(
            f"{source} was fitted in a different space ({theirs.space.fingerprint}) from "
            f"{space.name!r} ({space.fingerprint})",
            _made(QUANTIZER),
        )
    for name in ("concept_dim", "codebooks", "units"):
        has, wants = getattr(theirs, name), getattr(config, name)
        if has != wants:
            raise IntegrityError(
                f"{source} has {name} {has}, the model {wants}",
                f"set it in the recipe's [model]: {name} = {has}",
            )
    return found.state_dict()


def _made(kind: str) -> str:
    return f'fit one in the space of the recipe: lcm train RECIPE.toml, with kind = "{kind}"'


def fit_codebooks(
    config: QuantizerConfig,
    data: EndlessData,
    limit: int,
    iterations: int,
    seed: int,
    progress: StartJob,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Fit codebooks on at most `limit` concepts of the data; return the quantizer's state."""
    x_ND = torch.cat(list(concepts(data, limit)))[:limit].to(device)
    with progress("fitting the codebooks", config.codebooks) as advance:
        fitted = fit_quantizer(x_ND, config, iterations=iterations, seed=seed, progress=advance)
    return fitted.state_dict()


def counting(parts: Iterator[Tensor], advance: Progress) -> Iterator[Tensor]:
    """Yield `parts`, reporting the number of rows in each to `advance`."""
    for part in parts:
        advance(len(part))
        yield part

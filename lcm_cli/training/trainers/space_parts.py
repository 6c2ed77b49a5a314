"""The parts of a space before training: networks, new or those of a space, and the tokenizer."""

import io
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import nn

from lcm_cli.errors import IntegrityError
from lcm_cli.files import atomic_path
from lcm_cli.space import Space
from lcm_cli.space.decoder import DecoderConfig, TextDecoder
from lcm_cli.space.encoder import EncoderConfig, TextEncoder
from lcm_cli.space.loading import load_weights
from lcm_cli.training.data.parallel_text import Translations
from lcm_cli.training.recipes.space import SpaceShape

TOKENIZER_SENTENCES = 60_000  # per language; more change the tokenizer little


def set_dropout(network: nn.Module, share: float) -> None:
    """Set the dropout probability of all layers."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


def trainable(space: Space) -> tuple[TextEncoder, TextDecoder]:
    """Return trainable copies of a space's networks, in float32."""
    files, config = space.files, space.files.config
    encoder, decoder = (
        EncoderConfig(**config["encoder"]),
        DecoderConfig(**config["decoder"]),
    )
    cpu = torch.device("cpu")
    networks = (
        load_weights(TextEncoder, encoder, files.encoder, cpu, torch.float32, files.adapter),
        load_weights(TextDecoder, decoder, files.decoder, cpu, torch.float32, files.adapter),
    )
    for network in networks:
        for p in network.parameters():
            p.data = p.data.clone()  # detach from the memory-mapped file
        network.requires_grad_(True).train()
    return networks


def new_networks(shape: SpaceShape, vocabulary: int, seed: int) -> tuple[TextEncoder, TextDecoder]:
    """Return newly initialised networks, which share one embedding if `shape.tie`."""
    common = (shape.dim, shape.heads, shape.ffn_dim, vocabulary)
    encoder = TextEncoder(EncoderConfig(shape.encoder_layers, *common, shape.max_length))
    # Training does not predict the language token (`shifted`), so its probability means nothing.
    config = DecoderConfig(
        shape.decoder_layers, *common, shape.dim, shape.max_length, scores_language=False
    )
    decoder = TextDecoder(config)
    initialize((encoder, decoder), seed)
    if shape.tie:
        decoder.decoder_frontend.embed = encoder.encoder_frontend.embed
    return encoder, decoder


def initialize(networks: Iterable[nn.Module], seed: int) -> None:
    """Initialise networks: matrices by Xavier, embeddings by a normal of variance 1 / dim."""
    generator = torch.Generator().manual_seed(seed)
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5, generator=generator)


def train_tokenizer(path: Path, lines: Iterable[Translations], vocabulary: int) -> None:
    """Train a sentencepiece model on the sentences of `lines`, with equal weight per language.

    Raises IntegrityError if there is too little text for that many pieces.
    """
    import sentencepiece

    texts: dict[str, list[str]] = {}
    for line in lines:
        for code, found in line.items():
            texts.setdefault(code, []).extend(found)
    most = min(max(len(t) for t in texts.values()), TOKENIZER_SENTENCES) if texts else 0
    balanced = [t for _, all_ in sorted(texts.items()) for t in islice(cycle(all_), most)]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(balanced),
            model_writer=model,
            vocab_size=vocabulary,
            character_coverage=0.9999,
            hard_vocab_limit=False,  # little text yields fewer pieces
            byte_fallback=True,  # any text can be encoded, if need be as bytes
            unk_id=0,  # the ids of SONAR's model, to which Tokenizer adds 1
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        hint = "set a smaller shape.vocabulary, or add text"
        raise IntegrityError(f"no tokenizer of {vocabulary} pieces: {error}", hint) from error
    with atomic_path(path, force=True) as temporary:
        temporary.write_bytes(model.getvalue())

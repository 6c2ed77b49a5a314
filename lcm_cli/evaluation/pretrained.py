"""Pretrained models of the package transformers, from a folder or the Hugging Face Hub."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lcm_cli.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


def transformers() -> Any:
    """Return the package transformers. Raises UsageError if it is not installed."""
    try:
        import transformers as package
    except ImportError as error:
        message = f"this needs the package transformers: {error}"
        raise UsageError(message, "pip install 'lcm-cli[judges]'") from error
    return package


def load_pretrained(name: str, kind: str, fallback: str = "") -> Any:
    """Load the auto class `kind` of transformers from a folder or the Hub.

    If `name` cannot be loaded, `fallback` is tried. Code shipped with a model is never run. Raises
    NotFoundError if neither can be found or downloaded.
    """
    package = transformers()
    try:
        return getattr(package, kind).from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        if fallback:
            return load_pretrained(fallback, kind)
        reason = str(error).strip().splitlines()[0]
        hint = "a model is downloaded on first use: go online, or name a folder"
        raise NotFoundError(f"cannot load {name}: {reason}", hint) from error


def weights(name: str) -> "dict[str, Tensor]":
    """Return the weights in a folder or Hub repository, without unpickling code.

    Raises NotFoundError if there are none.
    """
    import torch
    from safetensors.torch import load_file
    from transformers.utils.hub import cached_file

    # Some repositories have the weights only as a pickle: read as tensors, never as code.
    with _not_found(name):
        path = cached_file(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
        if path is not None:
            return load_file(path)
        path = str(cached_file(name, "pytorch_model.bin"))
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return state


def revision(name: str) -> str:
    """Return the commit of a Hub model in the local cache, "" for a folder or an absent model."""
    from lcm_cli.hub.snapshot import hub_cache

    ref = hub_cache() / f"models--{name.replace('/', '--')}" / "refs" / "main"
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""


def tokenized(tokenizer: Any, texts: Sequence[str], device: str, max_tokens: int = 512) -> Any:
    """Return texts as padded tensors on a device, each cut after `max_tokens` tokens."""
    # GPT-2's has no padding. Any token serves: the attention mask hides it.
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=max_tokens,
        return_tensors="pt",
        return_token_type_ids=False,  # all equal for single texts, and not every model takes them
    )
    return inputs.to(device)


@contextmanager
def _not_found(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise NotFoundError(
            f"cannot load {name}: {reason}", "go online, or name a folder"
        ) from error

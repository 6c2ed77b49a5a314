"""Segmentation of text without punctuation, such as transcripts, by wtpsplit's model SaT.

Frohmann et al., "Segment Any Text" (2024). The model reads 85 languages and needs no language code.
"""

from functools import cache
from importlib import import_module
from typing import Any

from lcm_cli.errors import NotFoundError, UsageError

MODEL = "sat-3l-sm"  # segment-any-text/sat-3l-sm on the Hugging Face Hub


def split(text: str) -> list[str]:
    """Return the sentences of `text`, without the white space around them.

    Raises UsageError if wtpsplit is missing, NotFoundError if the model cannot be loaded.
    """
    return [sentence.strip() for sentence in load().split(text) if sentence.strip()]


@cache
def load() -> Any:
    """Return the model, downloaded by the first call on a machine."""
    try:
        wtpsplit = import_module("wtpsplit")
    except ImportError as error:
        raise UsageError(
            f"--split sat needs the package {error.name}", "pip install 'lcm-cli[sat]'"
        ) from error
    try:
        return wtpsplit.SaT(MODEL)
    except OSError as error:  # transformers has no such file and cannot download it
        raise NotFoundError(
            f"cannot load the model {MODEL} of wtpsplit: {str(error).splitlines()[0]}",
            "run the command once with access to the internet; it downloads the model",
        ) from error

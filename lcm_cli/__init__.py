"""lcm: language modelling in concept space, as a library. Each name is loaded when first used."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcm_cli.version import __version__ as __version__

if TYPE_CHECKING:
    from lcm_cli.documents import Document
    from lcm_cli.errors import AuthError, IntegrityError, LcmError, NotFoundError, UsageError
    from lcm_cli.models import load_model
    from lcm_cli.space import DecodeOptions, Space, load_space
    from lcm_cli.space.sentence_encoder import SentenceEncoder
    from lcm_cli.text.languages import Language
    from lcm_cli.writing.expand import expand
    from lcm_cli.writing.summarize import summarize
    from lcm_cli.writing.writer import generate

__all__ = [
    "AuthError",
    "DecodeOptions",
    "Document",
    "IntegrityError",
    "Language",
    "LcmError",
    "NotFoundError",
    "SentenceEncoder",
    "Space",
    "UsageError",
    "expand",
    "generate",
    "load_model",
    "load_space",
    "summarize",
]

# In a checkout that is not installed the commands and checkpoints lie beside this package; the
# wheel has them inside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "commands" / "__init__.py").is_file() and (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

_HOMES = {
    "Document": "documents",
    "Language": "text.languages",
    "SentenceEncoder": "space.sentence_encoder",
    "expand": "writing.expand",
    "generate": "writing.writer",
    "load_model": "models",
    "summarize": "writing.summarize",
    **dict.fromkeys(("DecodeOptions", "Space", "load_space"), "space"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

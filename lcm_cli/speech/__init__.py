"""Speech encoders: from speech to the concepts of a space, which decodes them in any language.

Importing the package does not import torch; taking a name from it does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcm_cli.speech.speech import Speech as Speech
    from lcm_cli.speech.speech import load_speech_encoder as load_speech_encoder

__all__ = ["Speech", "load_speech_encoder"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lcm_cli.speech import speech

    return getattr(speech, name)

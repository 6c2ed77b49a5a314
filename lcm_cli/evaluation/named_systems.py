"""Resolution of the names that a user gives to systems."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lcm_cli.errors import LcmError, NotFoundError, UsageError
from lcm_cli.evaluation.systems import BASELINES, Settings, SpaceItself, System, baseline
from lcm_cli.hub.locate import locate_space, locate_speech
from lcm_cli.schema import nearest

if TYPE_CHECKING:
    from lcm_cli.space import Space


def load_systems(names: Sequence[str], space: "Space", settings: Settings) -> list[System]:
    """Return the systems called `names`, all in `space`.

    Raises UsageError for a name given twice or of another space, NotFoundError for an unknown name,
    and what loading a concept model raises.
    """
    repeated = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if repeated:
        raise UsageError(f"{repeated[0]} is named twice")
    return [_system(name, space, settings) for name in names]


def _system(name: str, space: "Space", settings: Settings) -> System:
    system = baseline(name, settings)
    if system is not None:
        return system
    if name.startswith("hf:"):
        from lcm_cli.evaluation.seq2seq_system import Seq2Seq

        return Seq2Seq(name, str(space.device))
    if name == space.name:
        return SpaceItself(name, space.fingerprint)
    if _is_space(name):
        raise UsageError(
            f"{name} is a space, but this run uses the space {space.name}",
            f"evaluate it with --space {name}",
        )
    if _is_speech_encoder(name):
        from lcm_cli.evaluation.spoken import SpeechItself
        from lcm_cli.speech import load_speech_encoder

        speech = load_speech_encoder(name, device=str(space.device), precision=space.precision)
        speech.check_space(space.name, space.fingerprint)
        return SpeechItself(name, speech)
    from lcm_cli.evaluation.model_system import ConceptSystem

    try:
        return ConceptSystem(name, space, settings)
    except NotFoundError as error:
        near = nearest(name, BASELINES)
        hint = f"did you mean {' or '.join(near)}?" if near else error.hint
        raise NotFoundError(error.message, hint) from error


def _is_space(name: str) -> bool:
    return _is_found(locate_space, name)


def _is_speech_encoder(name: str) -> bool:
    return _is_found(locate_speech, name)


def _is_found(locate: Callable[[str], object], name: str) -> bool:
    try:
        locate(name)
    except LcmError:
        return False
    return True

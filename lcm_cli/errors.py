"""The errors a user can meet. Each carries what went wrong, a hint, and an exit code."""


class LcmError(Exception):
    """Something a user can act on: shown as `error: message` and `hint: hint`, never a traceback.

    `message` says what happened, with the offending value; `hint` how to go on.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LcmError):
    """The call itself is wrong: a flag, a combination, an unwritable target."""

    exit_code = 2


class NotFoundError(LcmError):
    """A file, checkpoint or language that does not exist here."""

    exit_code = 3


class AuthError(LcmError):
    """A gated or private resource, or a licence that was not accepted."""

    exit_code = 4


class IntegrityError(LcmError):
    """Bytes that are not what they claim: checksum, shape, width, NaN, unknown config key."""

    exit_code = 5

"""The errors that users can see, each with a message, a hint and an exit code."""


class LcmError(Exception):
    """An error that a user can act on, shown as `error: message` and `hint: hint`, no traceback.

    `message` states what is wrong, with the offending value; `hint` says how to continue.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LcmError):
    """A wrong call: an invalid flag or combination, a target that cannot be written."""

    exit_code = 2


class NotFoundError(LcmError):
    """A file, checkpoint or language that does not exist on this machine."""

    exit_code = 3


class AuthError(LcmError):
    """A gated or private resource, or a licence that was not accepted."""

    exit_code = 4


class IntegrityError(LcmError):
    """Invalid content: a wrong checksum, shape or width, NaN, an unknown config key."""

    exit_code = 5

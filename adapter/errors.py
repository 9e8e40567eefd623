"""The exceptions that a user can meet. Each message says what failed, which thing it was, and the remedy."""


class AdapterError(Exception):
    """Base of everything below; `app.py` shows it as a toast, the command line as one line on stderr."""


class LoadError(AdapterError):
    """A base, an encoder or an adapter cannot be loaded."""


class BadInput(AdapterError):
    """This request (message, image, parameter) cannot be served."""


class Busy(AdapterError):
    """The queue is full or a request ran out of its time."""


class EngineBroken(AdapterError):
    """The engine has failed again and again and answers nothing any more."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message for a sentence of our own; its class name where it has no message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

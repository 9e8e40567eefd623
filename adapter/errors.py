"""The exceptions that a user can meet. Each message says what failed, which thing it was, and the remedy."""


class AdapterError(Exception):
    """Base of everything below. Its text is a sentence for anybody, without a folder of this machine or another
    exception's text. detail: what the sentence must not hold; only the command line and logs show it.
    """

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__(sentence)
        self.detail = detail


class LoadError(AdapterError):
    """A base, an encoder or an adapter cannot be loaded."""


class BadInput(AdapterError):
    """This request (message, image, parameter) cannot be served."""


class ContextOverflow(BadInput):
    """A conversation leaves no room for an answer."""


class WrongBase(LoadError, BadInput):
    """An adapter that was made for another base is asked for."""


class BadForm(BadInput):
    """The form that is asked for cannot be used for any answer."""


class Busy(AdapterError):
    """The queue is full or a request ran out of its time."""


class Closing(Busy):
    """The server ends, and with it every answer."""

    def __init__(self, sentence: str = "The server is going down. Ask again in a minute.") -> None:
        super().__init__(sentence)


class EngineBroken(AdapterError):
    """The engine has failed again and again and answers nothing any more."""


def with_detail(error: BaseException) -> str:
    """The line about an error for the command line and for logs, without what could steer a terminal."""
    detail = getattr(error, "detail", "")
    return printable(f"{error} ({detail})" if detail else str(error))


def printable(text: str) -> str:
    """The text in one line, with what could steer a terminal as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message (two if it ends in a colon); its class name where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]

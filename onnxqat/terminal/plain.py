"""Output on the terminal: names are plain data, not markup or escape sequences."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from onnxqat.errors import OnnxqatError

if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]
else:  # Python 3.10 knows no types of it
    _Handler = logging.StreamHandler

#: Width where output is a file or a pipe: no line is cut or folded there, so that one fact is on one line.
WIDE = 10_000


class Terminal(Console):
    """A console that prints strings as they are, without markup, and without the characters that control a terminal."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    @property
    def size(self) -> ConsoleDimensions:
        """Size of the terminal; elsewhere lines are as wide as they want to be, unless COLUMNS says otherwise."""
        if self.is_terminal or self._width is not None or "COLUMNS" in self._environ:
            return super().size
        return ConsoleDimensions(WIDE, 25)

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        self._width, self._height = size

    def on_broken_pipe(self) -> None:
        """Raises OnnxqatError: nobody reads standard output any more."""
        raise OnnxqatError("standard output: its reader has ended; read it to its end, or write to a file")

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Renders what rich renders, its text made plain."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


class _StandardError(_Handler):
    """Writes to what is standard error now: while a bar is shown, that prints above it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The stream."""
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        raise AttributeError("the stream is always standard error")


class _PlainFormatter(logging.Formatter):
    """Log lines whose text is plain."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return plain(super().format(record))


def log_plainly(level: int) -> None:
    """Lets this package log to standard error from a level on, and libraries errors alone."""
    logger = logging.getLogger("onnxqat")
    logger.setLevel(level)
    # libraries may have set up the root logger, at their own level, when they were imported
    logger.propagate = False
    handler = _StandardError()
    handler.setFormatter(_PlainFormatter("%(message)s"))
    logger.handlers = [handler]
    for noisy in ("onnxscript", "onnx_ir", "tf2onnx", "tensorflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def cells(*texts: str | None) -> list[Text]:
    """A row of a table whose texts are data on any console, the user's own too; what does not fit a column is folded, not cut."""
    return [Text(plain(text or ""), overflow="fold") for text in texts]


def plain(text: str) -> str:
    """The text without what is not printable; ends of lines stay."""
    return text if text.isprintable() else "".join(one for one in text if one.isprintable() or one in "\n\xa0")

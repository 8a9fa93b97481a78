"""What the library says while it works, on nerfstudio's console."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from nerfstudio.utils.rich_utils import CONSOLE


class _ConsoleHandler(logging.Handler):
    """Shows log messages on nerfstudio's console."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message; brackets in a path are no markup."""
        CONSOLE.log(self.format(record), markup=False)


@contextmanager
def shown_progress(name: str) -> Iterator[None]:
    """Show what a part of the library logs while something runs.

    Args:
        name: Name of its logger, such as `fvgen_recon`.
    """
    logger, handler = logging.getLogger(name), _ConsoleHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)

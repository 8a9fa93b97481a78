"""What a user's mistake looks like on the command line: one sentence and exit code 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fvgen_recon.errors import FvgenError


@contextmanager
def one_sentence() -> Iterator[None]:
    """Print an `FvgenError` raised inside as one sentence and leave with exit code 2."""
    try:
        yield
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - this is the command line.
        raise SystemExit(2) from None

"""What a user's mistake looks like on the command line: one sentence and exit code 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from fvgen_recon.errors import FvgenError

_RENDER = "nerfstudio.scripts.render"


@contextmanager
def one_sentence() -> Iterator[None]:
    """Print an `FvgenError` raised inside as one sentence and leave with exit code 2."""
    try:
        yield
    except FvgenError as error:
        _tell(error)
        raise SystemExit(2) from None


def tell_uncaught() -> None:
    """End a tool of nerfstudio with one sentence where a user's mistake ends it.

    Nerfstudio's tools read `config.yml`, checkpoints and photos themselves, outside of everything
    that a method can guard; what nobody catches comes here. A second call changes nothing.
    """
    previous = sys.excepthook
    if getattr(previous, "__module__", None) == __name__:
        return

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        mistake = _mistake(error)
        if mistake is None:
            previous(kind, error, trace)
        else:
            _tell(mistake)
            raise SystemExit(2)  # Python takes the exit code from here.

    sys.excepthook = tell


def _tell(error: FvgenError) -> None:
    print(f"error: {error}", file=sys.stderr)  # noqa: T201 - this is the command line.


def _mistake(error: BaseException) -> FvgenError | None:
    """Return what a user did wrong; none where the program is to blame."""
    if isinstance(error, FvgenError):
        return error
    if not isinstance(error, Exception):
        return None
    from fvgen_nerfstudio.diagnosis import find_damage

    damage = find_damage(error)
    if damage is not None or _RENDER not in sys.modules:
        return damage
    from fvgen_nerfstudio.misuse import find_misuse

    return find_misuse(error)

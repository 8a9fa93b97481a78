"""Entry points. nerfstudio imports this module at the start of every ns-* command.

Two rules follow. It is light: what a method needs is imported when the method is asked for, which
also keeps clear of nerfstudio's own import cycle (data parsers are discovered while its
datamanagers are half imported). And it fails softly: an import that breaks here takes away this
method and says why, and every other command works as before.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unavailable:
    """Stands where a method would be; nerfstudio warns and prints it."""

    name: str
    """Name of the method."""
    reason: str
    """Why it cannot be used."""

    def __str__(self) -> str:
        """Say what is missing."""
        return f"{self.name}, which cannot be imported ({self.reason}),"


def _dataparser() -> Any:
    from nerfstudio.plugins.registry_dataparser import DataParserSpecification

    from fvgen_nerfstudio.dataparser import FvgenDataParserConfig

    return DataParserSpecification(
        config=FvgenDataParserConfig(),
        description="Posed photos in any format that fvgen-recon reads, with a choice of inputs.",
    )


def _method(name: str) -> Any:
    from fvgen_nerfstudio.method import METHODS

    return METHODS[name]()


_MAKERS = {
    "fvgen_splat": lambda: _method("fvgen-splat"),
    "fvgen_splat_cpu": lambda: _method("fvgen-splat-cpu"),
    "fvgen_data": _dataparser,
}


def __getattr__(name: str) -> Any:
    """Make an entry point's object when it is asked for."""
    if name not in _MAKERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = _MAKERS[name]()
    except Exception as error:
        value = Unavailable(name.replace("_", "-"), f"{type(error).__name__}: {error}")
    globals()[name] = value
    return value

"""`python -m fvgen_nerfstudio.export gaussian-splat ...`: ns-export where open3d does not load.

ns-export imports open3d before anything else, although a splat needs nothing of it, and open3d
needs system libraries (libusb, libGL) that a bare machine lacks. This runs the same command with
a stand-in for open3d where the real one cannot be imported.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

from fvgen_nerfstudio.failure import one_sentence
from fvgen_recon.errors import MissingDependencyError


class _Absent(ModuleType):
    """Stands where open3d would be; saying what is missing when it is really needed."""

    def __init__(self, reason: str) -> None:
        super().__init__("open3d")
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        """Refuse every use but Python's own questions about the module."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise MissingDependencyError(
            f"This export needs open3d, which cannot be imported ({self._reason}): install the "
            "system library that it names."
        )


def stand_in_for_open3d() -> None:
    """Let `import open3d` succeed; the real one is used wherever it can be imported."""
    try:
        importlib.import_module("open3d")
    except ImportError as error:
        sys.modules["open3d"] = _Absent(str(error))


def main() -> None:
    """Run nerfstudio's exporter."""
    stand_in_for_open3d()
    from nerfstudio.scripts.exporter import entrypoint

    with one_sentence():
        entrypoint()


if __name__ == "__main__":
    main()

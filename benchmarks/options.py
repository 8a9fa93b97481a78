"""What every benchmark over scenes can be told."""

from dataclasses import dataclass
from pathlib import Path

import torch
from case import FROZEN, Case, numbers, plan_cases


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """Which scenes, at what size, where and for how long."""

    data: Path
    """Folder with one sub-folder a scene."""
    out: Path
    """JSON file with the results."""
    suite: str = "folder"
    """Suite that the splits come from."""
    scenes: str = ""
    """Names of scenes, separated by commas; all where empty."""
    iterations: int = 2000
    """Training steps."""
    long_side: int = 0
    """Longer image side in pixels; 0 keeps the photos' size."""
    work: Path = Path("outputs/benchmark")
    """Where folds and trials are kept; finished ones are not run again."""
    features: Path | None = None
    """File of packed feature networks, for machines without their packages."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""
    commit: str = ""
    """Commit to note where git cannot tell."""

    def plan(self, views: str, frozen: Path = FROZEN) -> list[Case]:
        """List the cases.

        Args:
            views: Numbers of input views, separated by commas.
            frozen: Folder of the lists of suites that freeze their splits.

        Raises:
            InputError: The suite or a scene is unknown, or the data are missing or do not suffice.
        """
        return plan_cases(
            self.suite,
            self.data,
            views=numbers(views),
            scenes=tuple(filter(None, self.scenes.split(","))),
            long_side=self.long_side,
            work=self.work,
            frozen=frozen,
        )

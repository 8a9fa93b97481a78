"""Where curves and pictures go: a JSON-lines file, a line of text, TensorBoard, W&B."""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import MissingDependencyError
from fvgen_recon.io.file import atomic_path, read_json, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands, with the means since the last report."""

    phase: str
    """Name of the phase."""
    step: int
    """Student steps done in the whole run."""
    num_steps: int
    """Student steps of the whole run."""
    seconds_per_step: float
    """Since the last report."""
    seconds_left: float
    """Estimate for the rest of the run, at the pace of this process' life so far."""
    scalars: Mapping[str, float]
    """Numbers by name."""


@runtime_checkable
class Tracker(Protocol):
    """Something that keeps curves and pictures."""

    def log(self, progress: Progress) -> None:
        """Keep the numbers."""
        ...

    def picture(self, step: int, name: str, image: Float[Tensor, "3 H W"]) -> None:
        """Keep a picture in [0, 1]."""
        ...

    def close(self) -> None:
        """Write out what is left."""
        ...


class LineTracker:
    """One line of text a report."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def log(self, progress: Progress) -> None:
        """Write step, pace, time left and all losses."""
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        numbers = "  ".join(
            f"{name.removeprefix('loss/')} {value:.4g}"
            for name, value in progress.scalars.items()
            if name.startswith(("loss/", "validation/", "accuracy/all", "weight/mean"))
        )
        self._write(
            f"{progress.phase} {progress.step}/{progress.num_steps}  "
            f"{progress.seconds_per_step:.3g} s/step  {minutes}:{seconds:02d} left  {numbers}"
        )

    def picture(self, step: int, name: str, image: Float[Tensor, "3 H W"]) -> None:
        """Ignore pictures."""

    def close(self) -> None:
        """Nothing is left."""


class FileTracker:
    """`metrics.jsonl` and PNG files in a folder.

    A run that goes on from a checkpoint writes the lines after it anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "metrics.jsonl"
        self._has_written = False
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, progress: Progress) -> None:
        """Append one line."""
        if not self._has_written and self._path.is_file():
            self._keep_before(progress.step)
        self._has_written = True
        line = {"step": progress.step, "phase": progress.phase, **progress.scalars}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _keep_before(self, step: int) -> None:
        """Drop the lines of this step and later ones, and one that an interruption cut off."""
        lines = [line for line in self._path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] < step]
        with atomic_path(self._path) as path:
            path.write_text("".join(f"{line}\n" for line in kept))

    def picture(self, step: int, name: str, image: Float[Tensor, "3 H W"]) -> None:
        """Write a PNG."""
        from fvgen_recon.io.image import write_image

        write_image(self._folder / f"{name}-{step:07d}.png", image)

    def close(self) -> None:
        """Nothing is left."""


class TensorBoardTracker:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, progress: Progress) -> None:
        """Add the numbers."""
        for name, value in progress.scalars.items():
            self._writer.add_scalar(name, value, progress.step)

    def picture(self, step: int, name: str, image: Float[Tensor, "3 H W"]) -> None:
        """Add the picture."""
        self._writer.add_image(name, image, step)

    def close(self) -> None:
        """Write out what is left."""
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run; one that goes on in the same folder is the same run there.

    Raises:
        MissingDependencyError: wandb is not installed.
    """

    def __init__(self, project: str, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingDependencyError(
                "Tracking with W&B needs wandb: pip install 'fvgen-recon[distill]'."
            ) from error
        self._wandb = wandb
        self._run = wandb.init(
            project=project, dir=str(folder), id=_run_name(folder), resume="allow"
        )

    def log(self, progress: Progress) -> None:
        """Add the numbers."""
        self._run.log(dict(progress.scalars), step=progress.step)

    def picture(self, step: int, name: str, image: Float[Tensor, "3 H W"]) -> None:
        """Add the picture."""
        pixels = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        self._run.log({name: self._wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _run_name(folder: Path) -> str:
    """Return the name of this folder's run, drawn once and kept there."""
    path = folder / "wandb-run.json"
    if not path.is_file():
        write_json(path, {"id": uuid.uuid4().hex[:12]})
    return str(read_json(path)["id"])

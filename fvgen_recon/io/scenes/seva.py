"""ReconFusion's folder, which SEVA made the exchange format of few-view benchmarks.

`transforms.json` as nerfstudio has it, and a `train_test_split_N.json` for each number of inputs.
"""

from pathlib import Path

from fvgen_recon.io.scenes import nerfstudio
from fvgen_recon.io.scenes.capture import Capture

SPLITS = "train_test_split_*.json"


def detect(folder: Path) -> bool:
    """Return whether the folder holds a `transforms.json` and at least one split."""
    return folder.is_dir() and nerfstudio.detect(folder) and any(folder.glob(SPLITS))


def load(folder: Path, cache: Path) -> Capture:
    """Read a SEVA scene; frames stay in the order of the file, which the splits' ids count.

    Args:
        folder: Scene folder.
        cache: Not used.

    Raises:
        InputError: Frames, poses or intrinsics are missing or malformed.
    """
    return nerfstudio.read_transforms(folder, is_sorted=False, format_name="seva")

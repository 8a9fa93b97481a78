"""Blender's folder, as of the synthetic NeRF scenes: one `transforms_*.json` for each split."""

from dataclasses import replace
from pathlib import Path

from fvgen_recon.io.scenes import nerfstudio
from fvgen_recon.io.scenes.capture import Capture

TRAIN = "transforms_train.json"
_HELD_OUT = ("transforms_val.json", "transforms_test.json")


def detect(folder: Path) -> bool:
    """Return whether the folder holds a `transforms_train.json`."""
    return (folder / TRAIN).is_file()


def load(folder: Path, cache: Path) -> Capture:
    """Read the frames of all splits; those of `val` and `test` are held out.

    Frames keep the order of the files. Photos that several files name are held out.

    Args:
        folder: Scene folder.
        cache: Not used.

    Raises:
        InputError: Frames, poses or intrinsics are missing or malformed.
    """
    files = [folder / name for name in (TRAIN, *_HELD_OUT) if (folder / name).is_file()]
    frames, is_test = {}, {}
    for file in files:
        meta, rows = nerfstudio.read_meta(file)
        for row in rows:
            key = (file.name, len(frames)) if row["file_path"] is None else row["file_path"]
            frames[key] = {**meta, **row}
            is_test[key] = file.name != TRAIN
    capture = nerfstudio.capture_frames(
        folder / TRAIN, list(frames.values()), list(range(len(frames))), "blender"
    )
    held_out = tuple(place for place, test in enumerate(is_test.values()) if test)
    return replace(capture, held_out=held_out)

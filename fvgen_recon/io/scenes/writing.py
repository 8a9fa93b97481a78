"""Scenes out, as nerfstudio's `transforms.json`."""

from pathlib import Path
from typing import Any

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.conventions import opencv_to_opengl
from fvgen_recon.io.file import write_json
from fvgen_recon.types import Cameras


def write_transforms(
    folder: Path,
    cameras: Cameras,
    names: tuple[str, ...],
    *,
    points: str | None = None,
    extras: tuple[dict[str, Any], ...] | None = None,
) -> None:
    """Write `transforms.json` with OpenGL poses and per-frame intrinsics.

    Args:
        folder: Scene folder.
        cameras: One camera for each frame.
        names: Image paths relative to the folder.
        points: Path of a PLY relative to the folder, or none.
        extras: Further keys of each frame.
    """
    if len(cameras) != len(names):
        raise InputError(f"{len(cameras)} cameras and {len(names)} names came: give one a frame.")
    poses = opencv_to_opengl(cameras.c2w.cpu()).tolist()
    rows = []
    for index, (name, pose) in enumerate(zip(names, poses, strict=True)):
        K = cameras.K[index]
        rows.append(
            {
                "file_path": name,
                "transform_matrix": pose,
                "fl_x": float(K[0, 0]),
                "fl_y": float(K[1, 1]),
                "cx": float(K[0, 2]),
                "cy": float(K[1, 2]),
                "w": cameras.width,
                "h": cameras.height,
                **(extras[index] if extras else {}),
            }
        )
    content: dict[str, Any] = {"camera_model": "OPENCV", "orientation_override": "none"}
    if points is not None:
        content["ply_file_path"] = points
    write_json(folder / "transforms.json", {**content, "frames": rows})

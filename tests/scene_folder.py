"""Scene folders written by hand, so that tests do not lean on the project's own writers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH, FOCAL = 24, 32, 20.0

# Looks along world -x from (1, 2, 3): its right is world -z, its up is world y (OpenGL columns).
LOOKING_LEFT = [[0.0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]]

CAMERAS_TXT = "1 PINHOLE 32 24 20 20 16 12\n"
# A quarter turn about y takes world (x, y, z) to camera (z + 1, y + 2, 3 - x).
IMAGES_TXT = """1 0.7071067811865476 0 0.7071067811865476 0 1 2 3 1 b.png
20 14 7 16 12 9
2 1 0 0 0 0 0 0 1 a.png
1 1 -1 3.5 4.5 7
"""
POINTS_TXT = """7 -7 -1 1 255 0 51 0.1 1 0 2 1
9 -7 -2 -1 0 255 0 0.1 1 1
"""


def write_photo(path: Path, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def shifted(x: float) -> list[list[float]]:
    return [[1.0, 0, 0, x], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def intrinsics() -> dict[str, Any]:
    return {"fl_x": FOCAL, "fl_y": FOCAL, "cx": 16.0, "cy": 12.0, "w": WIDTH, "h": HEIGHT}


def write_scene(folder: Path, num_views: int = 4, **changes: Any) -> Path:
    """A `transforms.json` of cameras in a row; `changes` replace its top-level keys."""
    frames = []
    for index in range(num_views):
        name = f"images/{index:03d}.png"
        write_photo(folder / name, seed=index)
        frames.append({"file_path": name, "transform_matrix": shifted(float(index))})
    write_meta(folder, {**intrinsics(), "frames": frames, **changes})
    return folder


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    (folder / "transforms.json").write_text(json.dumps(meta))


def read_meta(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "transforms.json").read_text())


def write_colmap(
    folder: Path, cameras: str = CAMERAS_TXT, images: str = IMAGES_TXT, points: str = POINTS_TXT
) -> Path:
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    for name, text in (("cameras", cameras), ("images", images), ("points3D", points)):
        (model / f"{name}.txt").write_text(text)
    for name in ("a.png", "b.png"):
        write_photo(folder / "images" / name)
    return folder

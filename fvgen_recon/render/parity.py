"""Comparison of point renders with a numeric fixture made by PyTorch3D itself."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.conventions import opencv_to_pytorch3d
from fvgen_recon.geometry.projection import project_points
from fvgen_recon.io.file import read_tensors
from fvgen_recon.render.point import projection_matrices, render_points
from fvgen_recon.render.point_torch import nearest_points, splat_frames
from fvgen_recon.types import Cameras, Difference, PointCloud

_IMAGE_TOLERANCE = 2e-4
_TOLERANCE = 1e-5
_INDEX_TOLERANCE = 1e-3


def compare_render(path: Path) -> tuple[Difference, ...]:
    """Compare our renders with a fixture of the layout of `point_render.safetensors`.

    The fixture holds `c2ws`, `focals`, `pp`, `R`, `T`, `points`, `colors`, `points_ndc_xy_viewz`
    and for each radius R in NDC `rR.image`, `rR.idx`, `rR.zbuf` and `rR.dists`. Image size, radii
    and points per pixel are read from it.

    Returns:
        One row for each comparison. Images may differ by 2e-4, other values by 1e-5; of the point
        indices one in a thousand may differ, where a pixel's centre lies on the rim of a disk.

    Raises:
        InputError: The file has another layout.
    """
    tensors = read_tensors(path)
    radii = sorted(key[1:-6] for key in tensors if key.startswith("r") and key.endswith(".image"))
    needed = {"c2ws", "focals", "pp", "R", "T", "points", "colors", "points_ndc_xy_viewz"}
    needed |= {f"r{radius}.{name}" for radius in radii for name in ("idx", "zbuf", "dists")}
    missing = needed - tensors.keys()
    if missing or not radii:
        raise InputError(
            f"{path} is not a fixture of point renders: it lacks {sorted(missing) or 'rR.image'}."
        )
    height, width = tensors[f"r{radii[0]}.image"].shape[1:3]
    cameras = _read_cameras(tensors, height, width)
    cloud = _read_cloud(tensors)
    rows = _compare_projection(tensors, cloud, cameras)
    for radius in radii:
        rows += _compare_radius(tensors, cloud, cameras, radius)
    return tuple(rows)


def _read_cameras(tensors: dict[str, Tensor], height: int, width: int) -> Cameras:
    num_cameras = len(tensors["c2ws"])
    K = torch.eye(3).repeat(num_cameras, 1, 1)
    K[:, [0, 1], [0, 1]] = tensors["focals"].reshape(num_cameras, -1).expand(-1, 2)
    K[:, :2, 2] = tensors["pp"]
    return Cameras(c2w=tensors["c2ws"], K=K, height=height, width=width)


def _read_cloud(tensors: dict[str, Tensor]) -> PointCloud:
    zeros = torch.zeros(len(tensors["points"]))
    return PointCloud(
        xyz=tensors["points"], rgb=tensors["colors"], confidence=zeros + 1, view=zeros.long()
    )


def _compare_projection(
    tensors: dict[str, Tensor], cloud: PointCloud, cameras: Cameras
) -> list[Difference]:
    """Compare the change of axes and the projected points."""
    rotation, translation = opencv_to_pytorch3d(cameras.w2c)
    uv, z = project_points(cloud.xyz, cameras)
    centre = uv.new_tensor([cameras.width / 2, cameras.height / 2])
    # PyTorch3D's NDC point left and up and count in halves of the shorter side.
    ndc = (centre - uv) / (min(cameras.height, cameras.width) / 2)
    ours = torch.cat([ndc, z[..., None]], dim=-1)
    reference = tensors["points_ndc_xy_viewz"]
    # Near the image plane coordinates grow without bound, so the error is taken relative to them.
    relative = (ours - reference) / reference.abs().clamp_min(1.0)
    return [
        Difference(name="R", value=_gap(rotation, tensors["R"]), tolerance=_TOLERANCE),
        Difference(name="T", value=_gap(translation, tensors["T"]), tolerance=_TOLERANCE),
        Difference(name="points", value=float(relative.abs().amax()), tolerance=_TOLERANCE),
    ]


def _compare_radius(
    tensors: dict[str, Tensor], cloud: PointCloud, cameras: Cameras, radius: str
) -> list[Difference]:
    """Compare both fast paths and the points of every pixel at one radius."""
    reference = tensors[f"r{radius}.image"].movedim(-1, 1)
    index = tensors[f"r{radius}.idx"]
    half = min(cameras.height, cameras.width) / 2
    matrices, size = projection_matrices(cameras), (cameras.height, cameras.width)
    per_pixel, pixels = index.shape[-1], float(radius) * half
    ours = render_points(cloud, cameras, radius_ndc=float(radius), points_per_pixel=per_pixel)
    by_sort = splat_frames(
        cloud.xyz, cloud.rgb, matrices,
        size=size, radius=pixels, points_per_pixel=per_pixel,
    )[0]  # fmt: skip
    found = nearest_points(
        cloud.xyz, matrices, size=size, radius=pixels, points_per_pixel=per_pixel
    )
    same = found.point == index
    depth = torch.where(same, found.depth, tensors[f"r{radius}.zbuf"])
    squared = torch.where(found.point >= 0, found.squared_distance / half**2, -1.0)
    squared = torch.where(same, squared, tensors[f"r{radius}.dists"])
    rows = {
        "image": (_gap(ours.frames, reference), _IMAGE_TOLERANCE),
        "image (sorted)": (_gap(by_sort, reference), _IMAGE_TOLERANCE),
        "idx (fraction)": (1 - float(same.double().mean()), _INDEX_TOLERANCE),
        "zbuf": (_gap(depth, tensors[f"r{radius}.zbuf"]), _TOLERANCE),
        "dists": (_gap(squared, tensors[f"r{radius}.dists"]), _TOLERANCE),
    }
    return [
        Difference(name=f"r{radius} {name}", value=value, tolerance=tolerance)
        for name, (value, tolerance) in rows.items()
    ]


def _gap(ours: Float[Tensor, "*S"], reference: Float[Tensor, "*S"]) -> float:
    """Return the greatest absolute difference."""
    return float((ours - reference).abs().amax())

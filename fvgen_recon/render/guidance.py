"""What a generator is conditioned on: point renders along a trajectory, with masks and depth."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fvgen_recon.errors import InputError
from fvgen_recon.render.point import PointRender, render_points
from fvgen_recon.render.point_surface import blend_surface, nearest_depth
from fvgen_recon.types import (
    HINT_CELL_PX,
    Anchor,
    Cameras,
    Guidance,
    PointCloud,
    Scene,
    Trajectory,
)

_HINT_RANGE = 1.5
"""Natural logarithm of the depth ratio from which hints no longer tell farther from far."""
_SUPPORT_SIDE = 96
_SUPPORT_RADIUS_PX = 0.75


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceConfig:
    """How point renders are made into guidance."""

    radius_px: float = 1.44
    """Radius of a point's disk in pixels: that of the teacher's renders, which are 288 high."""
    min_alpha: float = 0.5
    """Opacity from which a pixel of the render is trusted."""
    gap_px: int = 3
    """Width in pixels up to which gaps between points of a near surface are filled and hide what
    lies behind; 0 leaves all gaps open."""
    depth_tolerance: float = 0.05
    """Relative depth behind the nearest surface up to which a point belongs to it."""
    max_conflict: float | None = 0.15
    """A trusted pixel is dropped where a dense layer shows something nearer whose colour differs by
    more than this in some channel; none keeps it."""
    is_raw: bool = False
    """Whether frames are bare renders in the teacher's manner: composited front to back, gaps left
    open, darkened by low opacity and with all that is not trusted. Otherwise points are blended as
    a surface, trusted pixels have full colour and the others are black."""


TEACHER_GUIDANCE = GuidanceConfig(max_conflict=None, is_raw=True)
"""Renders as ViewCrafter was trained on them, at its 288 rows."""
_TEACHER_ROWS = 288


def guidance_config(*, is_raw: bool, height: int) -> GuidanceConfig:
    """Return how points are rendered for a generator of one kind or the other.

    Args:
        is_raw: Bare renders in the teacher's manner; otherwise opaque surfaces.
        height: Rows of the renders; the teacher's disks keep their size relative to the picture.
    """
    if not is_raw:
        return GuidanceConfig()
    radius = TEACHER_GUIDANCE.radius_px * height / _TEACHER_ROWS
    return replace(TEACHER_GUIDANCE, radius_px=radius)


class _Picture(NamedTuple):
    """A render made ready: colours, which pixels are trusted, depth and confidence."""

    frames: Float[Tensor, "T 3 H W"]
    mask: Bool[Tensor, "T 1 H W"]
    depth: Float[Tensor, "T 1 H W"]
    confidence: Float[Tensor, "T 1 H W"]


def render_guidance(
    scene: Scene,
    cloud: PointCloud,
    trajectory: Trajectory,
    *,
    min_confidence: float = 0.5,
    extra_layers: tuple[int, ...] = (),
    config: GuidanceConfig | None = None,
) -> Guidance:
    """Render a cloud along a trajectory and paste the clean photos at its anchors.

    Args:
        scene: The input views, of the trajectory's image size.
        cloud: The points in the scene's frame, on the scene's device.
        trajectory: The camera path.
        min_confidence: Points below this confidence only serve the dense layers.
        extra_layers: Further input views that get a dense layer each.
        config: Sizes and thresholds; the defaults by default.

    Returns:
        Guidance at the scene's image size. Where the trajectory has no anchors the input view
        nearest to its first frame is the reference, and those nearest to its ends the layers.

    Raises:
        InputError: The trajectory's image size is not the scene's, or it names missing views.
    """
    config = config or GuidanceConfig()
    cameras = trajectory.cameras
    _check(scene, trajectory)
    ends = _end_views(scene, trajectory)
    layers = [_draw(cloud[cloud.view == view], cameras, config) for view in (*ends, *extra_layers)]
    picture = _draw(cloud[cloud.confidence >= min_confidence], cameras, config)
    if config.max_conflict is not None:
        picture = _drop_conflicts(picture, layers, config)
    guesses = [] if config.is_raw else _draw_guesses(cloud, ends, cameras, config)
    # Before the photos are pasted: their cells would have no depth.
    hints = None if config.is_raw else _hints([picture, *layers[:2], *guesses])
    frames, mask, depth, _ = picture
    for anchor in trajectory.anchors:
        frames[anchor.frame] = scene.images[anchor.view]
        mask[anchor.frame] = True
    return Guidance(
        frames=frames,
        mask=mask,
        depth=depth,
        layers=torch.stack([layer.frames for layer in layers]),
        layer_masks=torch.stack([layer.mask for layer in layers]),
        anchors=trajectory.anchors,
        reference=scene.images[ends[0]],
        alternatives=torch.stack([guess.frames for guess in guesses]) if guesses else None,
        alternative_masks=torch.stack([guess.mask for guess in guesses]) if guesses else None,
        hints=hints,
    )


def _draw_guesses(
    cloud: PointCloud, ends: tuple[int, ...], cameras: Cameras, config: GuidanceConfig
) -> list[_Picture]:
    """Render the views that are no ends together, then the ends at each alternative depth."""
    is_end = torch.isin(cloud.view, torch.tensor(ends, device=cloud.view.device))
    others = [other[other.view == view] for other in cloud.alternatives for view in ends]
    return [_draw(part, cameras, config) for part in (cloud[~is_end], *others)]


def _hints(pictures: list[_Picture]) -> Float[Tensor, "S T 2 h w"]:
    """Return confidence and relative depth of renders in cells; the first one is the trusted."""
    mask = torch.stack([picture.mask for picture in pictures]).float()
    confidence = torch.stack([picture.confidence for picture in pictures])
    log_depth = torch.stack([picture.depth for picture in pictures]).clamp_min(1e-6).log()
    dense = mask[1:3]
    mean = (log_depth[1:3] * dense).sum() / dense.sum().clamp_min(1)
    relative = ((log_depth - mean) / _HINT_RANGE).clamp(-1, 1)
    planes = torch.cat([confidence * mask, relative * mask, mask], dim=2)
    height, width = planes.shape[-2:]
    planes = functional.pad(planes, (0, -width % HINT_CELL_PX, 0, -height % HINT_CELL_PX))
    cells = functional.avg_pool2d(planes.flatten(0, 1), HINT_CELL_PX).unflatten(0, mask.shape[:2])
    return cells[:, :, :2] / cells[:, :, 2:].clamp_min(1e-6)


def render_surface(cloud: PointCloud, cameras: Cameras, config: GuidanceConfig) -> PointRender:
    """Render points as a surface that hides what lies behind it, across narrow gaps too."""
    nearest = nearest_depth(cloud, cameras, radius_px=_SUPPORT_RADIUS_PX)
    limit = close_depth(nearest, config.gap_px) * (1 + config.depth_tolerance)
    return blend_surface(cloud, cameras, radius_px=config.radius_px, depth_limit=limit)


def close_depth(depth: Float[Tensor, "T 1 H W"], gap_px: int) -> Float[Tensor, "T 1 H W"]:
    """Fill gaps of near surfaces up to a width, leaving the surfaces' outlines where they are.

    This is the morphological closing of nearness: the least depth within the window spreads near
    surfaces, the greatest within the window then takes the spread back from their outlines.

    Args:
        depth: Z-depths of the nearest points; infinite where there is none.
        gap_px: Greatest width of a gap, in pixels.

    Returns:
        Z-depths of the nearest surface; infinite where there is none.
    """
    return 1 / _close(1 / depth, gap_px)


def _close(values: Float[Tensor, "T 1 H W"], gap_px: int) -> Float[Tensor, "T 1 H W"]:
    """Close gaps of great values: spread them, then take the spread back from their outlines."""
    spread = _spread(values, gap_px)
    # Outside the image nothing is known, so the border does not take the spread back.
    return -_spread(-spread, gap_px)


def _spread(values: Float[Tensor, "T 1 H W"], gap_px: int) -> Float[Tensor, "T 1 H W"]:
    """Return the greatest value within a square window, first along rows and then columns."""
    reach = (gap_px + 1) // 2
    rows = functional.max_pool2d(values, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    return functional.max_pool2d(rows, (2 * reach + 1, 1), stride=1, padding=(reach, 0))


def support_fraction(cloud: PointCloud, camera: Cameras) -> float:
    """Return the fraction of a single camera's pixels that points cover, at low resolution.

    Args:
        cloud: The points that count; all of them do, whatever their confidence.
        camera: One camera, on the cloud's device.
    """
    if not len(cloud):
        return 0.0
    scale = min(1.0, _SUPPORT_SIDE / max(camera.height, camera.width))
    height, width = max(1, round(camera.height * scale)), max(1, round(camera.width * scale))
    small = camera.resize(height, width)
    row = Cameras(c2w=small.c2w[None], K=small.K[None], height=height, width=width)
    depth = nearest_depth(cloud, row, radius_px=_SUPPORT_RADIUS_PX)
    return float(torch.isfinite(depth).double().mean())


def _check(scene: Scene, trajectory: Trajectory) -> None:
    """Say what does not fit."""
    cameras, size = trajectory.cameras, tuple(scene.images.shape[-2:])
    if (cameras.height, cameras.width) != size:
        raise InputError(
            f"The trajectory's cameras must have the scene's image size {size[0]}x{size[1]} "
            f"(height x width): {cameras.height}x{cameras.width} came."
        )
    missing = [anchor.view for anchor in trajectory.anchors if anchor.view >= len(scene)]
    if missing:
        raise InputError(
            f"The trajectory's anchors name view {missing[0]}, but the scene has {len(scene)} "
            f"views: plan the trajectory on the same scene."
        )


def _end_views(scene: Scene, trajectory: Trajectory) -> tuple[int, ...]:
    """Return the views of the first and the last anchor, or those nearest to the ends."""
    anchors: list[Anchor] = sorted(trajectory.anchors, key=lambda anchor: anchor.frame)
    if anchors:
        return anchors[0].view, anchors[-1].view
    ends = trajectory.cameras[[0, -1]].position
    return tuple(torch.cdist(ends, scene.cameras.position).argmin(1).tolist())


def _draw(cloud: PointCloud, cameras: Cameras, config: GuidanceConfig) -> _Picture:
    """Render points, decide which pixels to trust and fill narrow gaps between them."""
    if config.is_raw:
        render = render_points(cloud, cameras, radius_px=config.radius_px)
        mask = render.alpha >= config.min_alpha
        # Nobody asks how sure bare renders are.
        return _Picture(render.frames.clamp(0, 1), mask, render.depth, mask.to(render.depth))
    render = render_surface(cloud, cameras, config)
    mask = render.alpha >= config.min_alpha
    assert render.confidence is not None
    more = torch.cat([render.depth, render.confidence], dim=1) * render.alpha
    planes = torch.cat([render.frames, more, render.alpha], dim=1) * mask
    if config.gap_px > 0:
        # Gaps take the mean of their neighbours, which here all belong to the nearest surface.
        filled = functional.avg_pool2d(planes, 3, stride=1, padding=1)
        gap = _close(mask.float(), config.gap_px).bool() & ~mask & (filled[:, 5:] > 0)
        planes, mask = torch.where(gap, filled, planes), mask | gap
    planes = planes[:, :5] / planes[:, 5:].clamp_min(1e-6)
    return _Picture(planes[:, :3].clamp(0, 1), mask, planes[:, 3:4], planes[:, 4:])


def _drop_conflicts(picture: _Picture, layers: list[_Picture], config: GuidanceConfig) -> _Picture:
    """Drop pixels in front of which a layer shows something nearer of another colour.

    Where a near surface has no trusted points, trusted points of what it hides come through. A
    layer knows the surface, if only roughly; the pixel is then unknown rather than known.
    """
    assert config.max_conflict is not None
    mask = picture.mask
    for layer in layers:
        nearer = layer.mask & (layer.depth < picture.depth * (1 - config.depth_tolerance))
        differs = (layer.frames - picture.frames).abs().amax(1, keepdim=True) > config.max_conflict
        mask = mask & ~(nearer & differs)
    dropped = picture.mask & ~mask
    return picture._replace(
        frames=picture.frames.masked_fill(dropped, 0.0),
        mask=mask,
        depth=picture.depth.masked_fill(dropped, 0.0),
    )

"""What a generator is conditioned on: point renders along a trajectory, with masks and depth."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fvgen_recon.errors import InputError
from fvgen_recon.render.point import PointRender, render_points
from fvgen_recon.types import Anchor, Cameras, Guidance, PointCloud, Scene, Trajectory

_SUPPORT_SIDE = 96
_SUPPORT_RADIUS_PX = 0.75


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceConfig:
    """How point renders are made into guidance."""

    radius_px: float = 1.44
    """Radius of a point's disk in pixels: that of the teacher's renders, which are 288 high."""
    points_per_pixel: int = 10
    """Number of nearest points that are composited in a pixel."""
    min_alpha: float = 0.5
    """Opacity from which a pixel of the render is trusted."""
    is_normalised: bool = True
    """Whether colours of trusted pixels are divided by opacity; the teacher's own are not."""
    gap_px: int = 5
    """Width in pixels up to which gaps between near points hide what lies behind; 0 turns the
    removal of see-through points off."""
    depth_tolerance: float = 0.05
    """Relative depth behind the nearest surface up to which a point belongs to it."""


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
    trusted = render_surface(cloud[cloud.confidence >= min_confidence], cameras, config)
    mask = trusted.alpha >= config.min_alpha
    frames = _normalise(trusted, mask) if config.is_normalised else trusted.frames
    frames, mask, depth = frames.clamp(0, 1), mask.clone(), trusted.depth.clone()
    for anchor in trajectory.anchors:
        frames[anchor.frame] = scene.images[anchor.view]
        mask[anchor.frame] = True
    ends = _end_views(scene, trajectory)
    layers, layer_masks = _render_layers(cloud, cameras, (*ends, *extra_layers), config)
    return Guidance(
        frames=frames,
        mask=mask,
        depth=depth,
        layers=layers,
        layer_masks=layer_masks,
        anchors=trajectory.anchors,
        reference=scene.images[ends[0]],
    )


def render_surface(cloud: PointCloud, cameras: Cameras, config: GuidanceConfig) -> PointRender:
    """Render points without those that show through gaps between nearer points."""
    limit = None
    if config.gap_px > 0:
        nearest = render_points(cloud, cameras, radius_px=_SUPPORT_RADIUS_PX, points_per_pixel=1)
        limit = close_depth(nearest.depth, config.gap_px) * (1 + config.depth_tolerance)
    return render_points(
        cloud,
        cameras,
        radius_px=config.radius_px,
        points_per_pixel=config.points_per_pixel,
        depth_limit=limit,
    )


def close_depth(depth: Float[Tensor, "T 1 H W"], gap_px: int) -> Float[Tensor, "T 1 H W"]:
    """Fill gaps of near surfaces up to a width, leaving the surfaces' outlines where they are.

    This is the morphological closing of nearness: the least depth within the window spreads near
    surfaces, the greatest within the window then takes the spread back from their outlines.

    Args:
        depth: Z-depths of the nearest points; 0 where there is none.
        gap_px: Greatest width of a gap, in pixels.

    Returns:
        Z-depths of the nearest surface; infinite where there is none.
    """
    reach = (gap_px + 1) // 2
    window = 2 * reach + 1
    nearness = torch.where(depth > 0, 1 / depth.clamp_min(1e-12), torch.zeros_like(depth))
    spread = functional.max_pool2d(nearness, window, stride=1, padding=reach)
    # Outside the image nothing is known, so the border must not take the spread back.
    shrunk = -functional.max_pool2d(-spread, window, stride=1, padding=reach)
    return 1 / shrunk


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
    render = render_points(cloud, row, radius_px=_SUPPORT_RADIUS_PX, points_per_pixel=1)
    return float((render.alpha > 0).double().mean())


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


def _normalise(render: PointRender, mask: Bool[Tensor, "T 1 H W"]) -> Float[Tensor, "T 3 H W"]:
    """Divide the colours of trusted pixels by their opacity, so that gaps do not darken them."""
    return torch.where(mask, render.frames / render.alpha.clamp_min(1e-6), render.frames)


def _end_views(scene: Scene, trajectory: Trajectory) -> tuple[int, ...]:
    """Return the views of the first and the last anchor, or those nearest to the ends."""
    anchors: list[Anchor] = sorted(trajectory.anchors, key=lambda anchor: anchor.frame)
    if anchors:
        return anchors[0].view, anchors[-1].view
    ends = trajectory.cameras[[0, -1]].position
    return tuple(torch.cdist(ends, scene.cameras.position).argmin(1).tolist())


def _render_layers(
    cloud: PointCloud, cameras: Cameras, views: tuple[int, ...], config: GuidanceConfig
) -> tuple[Float[Tensor, "L T 3 H W"], Bool[Tensor, "L T 1 H W"]]:
    """Render all points of single input views, whatever their confidence."""
    layers, masks = [], []
    for view in views:
        render = render_surface(cloud[cloud.view == view], cameras, config)
        mask = render.alpha >= config.min_alpha
        frames = _normalise(render, mask) if config.is_normalised else render.frames
        layers.append(frames.clamp(0, 1))
        masks.append(mask)
    return torch.stack(layers), torch.stack(masks)

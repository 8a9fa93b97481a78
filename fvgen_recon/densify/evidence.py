"""What speaks for and against each pixel of a generated frame, as numbers between 0 and 1."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.densify.confidence import agreement
from fvgen_recon.geometry.projection import project_points, unproject_depth
from fvgen_recon.render.guidance import GuidanceConfig, render_surface
from fvgen_recon.types import Cameras, Guidance, PointCloud, Scene

EVIDENCE = (
    "trusted",
    "support",
    "geometry",
    "render",
    "hit",
    "layer",
    "layers",
    "seen",
    "reprojection",
    "middle",
    "contrast",
    "spread",
)
"""Names of the kinds of evidence, in order:

- trusted: a trusted point was rendered here;
- support: share of trusted pixels in the neighbourhood;
- geometry: confidence of the points rendered here, 0 where there are none;
- render: agreement of the frame with the trusted render, 0 outside of it;
- hit: a dense layer of an end was rendered here;
- layer: best agreement of the frame with a layer, 0 where none was hit;
- layers: agreement of the two ends' layers with each other, 0 where either was not hit;
- seen: share of the input views in whose images the trusted surface lies;
- reprojection: best agreement of the frame with a photo where the surface projects to;
- middle: 0 at the clip's ends, 1 in its middle;
- contrast: local contrast of the frame, where small shifts show;
- spread: disagreement of several samples; 0 where only one was drawn.
"""

_REACH_PX = 7


@torch.no_grad()
def gather_evidence(
    samples: Float[Tensor, "S T 3 H W"],
    guidance: Guidance,
    cameras: Cameras,
    scene: Scene,
    points: PointCloud,
    *,
    tolerance: float,
) -> Float[Tensor, "E T H W"]:
    """Return the evidence for the first of some samples of a clip.

    Args:
        samples: One or more samples of the same clip.
        guidance: What they were generated from.
        cameras: The clip's cameras.
        scene: The input views at the clip's size.
        points: The cloud that the renders were made of, with confidences.
        tolerance: Colour difference at which agreement falls to exp(-1/2).
    """
    frames, mask = samples[0], guidance.mask.float()
    seen, reprojection = _reproject(frames, guidance, cameras, scene, tolerance)
    hit, layer, layers = _layer_evidence(frames, guidance, tolerance)
    place = torch.linspace(0, 1, len(frames), device=frames.device)
    parts = {
        "trusted": mask,
        "support": F.avg_pool2d(
            mask, 2 * _REACH_PX + 1, stride=1, padding=_REACH_PX, count_include_pad=False
        ),
        "geometry": _point_confidence(points, cameras),
        "render": agreement(frames, guidance.frames, tolerance) * mask,
        "hit": hit,
        "layer": layer,
        "layers": layers,
        "seen": seen,
        "reprojection": reprojection,
        "middle": (4 * place * (1 - place))[:, None, None, None].expand_as(mask),
        "contrast": _contrast(frames),
        "spread": _spread(samples, tolerance),
    }
    return torch.stack([parts[name][:, 0] for name in EVIDENCE])


def _point_confidence(points: PointCloud, cameras: Cameras) -> Float[Tensor, "T 1 H W"]:
    """Render the points' confidence as if it were their colour."""
    grey = replace(points, rgb=points.confidence.clamp(0, 1)[:, None].expand(-1, 3).contiguous())
    render = render_surface(grey, cameras, GuidanceConfig())
    return (render.frames[:, :1]).clamp(0, 1)


def _layer_evidence(
    frames: Tensor, guidance: Guidance, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    empty = torch.zeros_like(guidance.depth)
    if guidance.layers.shape[0] == 0:
        return empty, empty, empty
    masks = guidance.layer_masks.float()
    best = (agreement(frames[None], guidance.layers, tolerance) * masks).amax(0)
    both = empty
    if len(masks) > 1:
        both = agreement(guidance.layers[0], guidance.layers[1], tolerance) * masks[0] * masks[1]
    return masks.amax(0), best, both


def _reproject(
    frames: Tensor, guidance: Guidance, cameras: Cameras, scene: Scene, tolerance: float
) -> tuple[Float[Tensor, "T 1 H W"], Float[Tensor, "T 1 H W"]]:
    """Look up where the trusted surface of each frame lies in the photos."""
    seen, best = torch.zeros_like(guidance.depth), torch.zeros_like(guidance.depth)
    size = frames.new_tensor([cameras.width, cameras.height])
    for index in range(len(frames)):
        depth = torch.where(guidance.mask[index, 0], guidance.depth[index, 0], 0)
        points, given = unproject_depth(depth, cameras[index])
        uv, z = project_points(points.flatten(0, 1), scene.cameras)
        grid = (2 * uv / size - 1).unflatten(1, given.shape)
        inside = (grid.abs() < 1).all(-1) & (z > 0).unflatten(1, given.shape) & given
        photos = F.grid_sample(scene.images, grid, align_corners=False)
        match = agreement(photos, frames[index][None], tolerance)[:, 0] * inside
        seen[index, 0], best[index, 0] = inside.float().mean(0), match.amax(0)
    return seen, best


def _contrast(frames: Tensor) -> Float[Tensor, "T 1 H W"]:
    """Standard deviation of brightness over 5 x 5 pixels, times 5 and at most 1."""
    grey = frames.mean(1, keepdim=True)
    mean = F.avg_pool2d(grey, 5, stride=1, padding=2, count_include_pad=False)
    square = F.avg_pool2d(grey**2, 5, stride=1, padding=2, count_include_pad=False)
    return (5 * (square - mean**2).clamp_min(0).sqrt()).clamp(max=1)


def _spread(samples: Tensor, tolerance: float) -> Float[Tensor, "T 1 H W"]:
    if samples.shape[0] == 1:
        return torch.zeros_like(samples[0, :, :1])
    variance = samples.var(0, unbiased=True).mean(1, keepdim=True)
    return 1 - torch.exp(-variance / (2 * tolerance**2))

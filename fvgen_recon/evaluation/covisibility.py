"""Which pixels of a view show what the inputs see too."""

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from fvgen_recon.errors import InputError
from fvgen_recon.pointcloud.base import PointCloudEstimator
from fvgen_recon.render.guidance import GuidanceConfig, render_surface
from fvgen_recon.types import Cameras, Scene

_LONG_SIDE = 320
_TRUSTED = 0.5


@torch.no_grad()
def seen_by_inputs(
    scene: Scene, cameras: Cameras, estimator: PointCloudEstimator
) -> Bool[Tensor, "N 1 H W"]:
    """Return where trusted points of the inputs show in other cameras.

    The mask depends on the inputs alone, so it is the same for every method. What it leaves out is
    invisible to the inputs or too uniform for stereo.

    Args:
        scene: The input views.
        cameras: The other cameras, of the scene's image size.
        estimator: Finds the points; should not use more than the inputs.
    """
    full = (cameras.height, cameras.width)
    scale = min(1.0, _LONG_SIDE / max(full))
    height, width = (max(1, round(side * scale)) for side in full)
    small = Scene(
        images=functional.interpolate(scene.images, (height, width), mode="area"),
        cameras=scene.cameras.resize(height, width),
        names=scene.names,
    )
    try:
        cloud = estimator.estimate(small)
    except InputError:  # The inputs do not overlap: nothing is seen twice.
        return torch.zeros(len(cameras), 1, *full, dtype=torch.bool)
    trusted = cloud[cloud.confidence >= _TRUSTED]
    views = cameras.resize(height, width).to(scene.images.device)
    alpha = render_surface(trusted, views, GuidanceConfig()).alpha
    mask = (alpha >= _TRUSTED).float()
    return functional.interpolate(mask, full, mode="nearest-exact").bool().cpu()

"""Random points where the cameras look: a start without any stereo."""

import math
from dataclasses import dataclass

import torch

from fvgen_recon.errors import InputError
from fvgen_recon.geometry.projection import camera_rays, project_points
from fvgen_recon.pointcloud.neighbour import first_sources, require_baseline
from fvgen_recon.types import PointCloud, Scene

_CONFIDENCE = 0.1
_NEAR, _FAR = 0.7, 12.0  # times the baseline to the nearest overlapping view
_OVERSAMPLE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomPoints:
    """Seeded points in the volume that at least two cameras see, coloured by a photo."""

    num_points: int = 20_000
    """Most points to return."""
    seed: int = 0
    """Seed of the draw."""

    def estimate(self, scene: Scene) -> PointCloud:
        """Draw points along random pixels' rays, evenly in log depth, and keep the shared ones.

        Raises:
            InputError: Fewer than two views came, or they do not overlap.
        """
        cameras = scene.cameras
        _, shortest = first_sources(cameras, require_baseline(cameras), 1)
        count = self.num_points * _OVERSAMPLE
        rng = torch.Generator().manual_seed(self.seed)
        view = torch.randint(len(scene), (count,), generator=rng).to(shortest.device)
        row = torch.randint(cameras.height, (count,), generator=rng).to(shortest.device)
        column = torch.randint(cameras.width, (count,), generator=rng).to(shortest.device)
        step = torch.rand(count, generator=rng).to(shortest)
        scale = torch.where(shortest.isfinite(), shortest, shortest.amin())[view]
        depth = scale * torch.exp(math.log(_NEAR) + math.log(_FAR / _NEAR) * step)
        xyz = camera_rays(cameras)[view, row, column] * depth[:, None] + cameras.position[view]
        uv, z = project_points(xyz, cameras)
        limit = torch.tensor([cameras.width, cameras.height], device=uv.device)
        seen = ((z > 0) & (uv >= 0).all(-1) & (uv <= limit).all(-1)).sum(dim=0) >= 2
        keep = seen.nonzero()[: self.num_points, 0]
        if keep.numel() == 0:
            raise InputError("The input views do not overlap: no point is seen by two of them.")
        return PointCloud(
            xyz=xyz[keep],
            rgb=scene.images[view, :, row, column][keep].clamp(0, 1),
            confidence=torch.full((len(keep),), _CONFIDENCE).to(xyz),
            view=view[keep],
        )

"""Similarity transforms between point sets."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.types import Cameras


@dataclass(frozen=True, kw_only=True, slots=True)
class Similarity:
    """The map x -> scale * rotation @ x + translation."""

    scale: float
    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, "3"]

    def apply(self, xyz: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
        """Move points."""
        return self.scale * xyz @ self.rotation.mT + self.translation


def align_points(source: Float[Tensor, "N 3"], target: Float[Tensor, "N 3"]) -> Similarity:
    """Least-squares similarity from source points to target points.

    S. Umeyama, "Least-squares estimation of transformation parameters between two point
    patterns", PAMI 1991, equations 40 to 42. At least three points that are not on a line.
    """
    a, b = source.double(), target.double()
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    a, b = a - mean_a, b - mean_b
    left, values, right = torch.linalg.svd(b.mT @ a / len(a))
    sign = torch.ones(3, dtype=a.dtype, device=a.device)
    sign[2] = torch.sign(torch.linalg.det(left) * torch.linalg.det(right))
    rotation = left @ torch.diag(sign) @ right
    scale = float((values * sign).sum() / a.square().sum(dim=1).mean())
    return Similarity(
        scale=scale,
        rotation=rotation.to(source.dtype),
        translation=(mean_b - scale * rotation @ mean_a).to(source.dtype),
    )


def align_cameras(source: Float[Tensor, "V 4 4"], target: Cameras) -> Similarity:
    """Similarity that takes camera poses (V >= 2) onto known cameras.

    Centres alone leave a rotation free when they lie on a line, so points along each camera's
    axes count too, at a distance of the mean spacing of the cameras.
    """
    return align_points(_camera_frame_points(source), _camera_frame_points(target.c2w))


def _camera_frame_points(c2w: Float[Tensor, "V 4 4"]) -> Float[Tensor, "N 3"]:
    centre = c2w[:, :3, 3]
    spacing = torch.pdist(centre).mean()
    along = centre[:, None] + spacing * c2w[:, :3, :3].mT
    return torch.cat([centre, along.reshape(-1, 3)])

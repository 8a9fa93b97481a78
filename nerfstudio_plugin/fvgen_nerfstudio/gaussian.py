"""Gaussians from points: how a splat starts and how it grows between rounds."""

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from fvgen_nerfstudio.strategy import StrategyState
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.types import PointCloud

SH_C0 = 0.28209479177387814
"""The constant spherical harmonic, 1 / (2 sqrt(pi))."""
NAMES = ("means", "scales", "quats", "features_dc", "features_rest", "opacities")
_NUM_NEIGHBOURS = 3
_MIN_SPACING = 1e-6
SEED_OPACITY = 0.1
"""Opacity that a Gaussian starts with unless something else is known."""


def neighbour_distance(xyz: Tensor) -> Tensor:
    """Return the mean distance of each point to its three nearest neighbours, in world units."""
    points = xyz.detach().cpu().numpy()
    num_neighbours = min(_NUM_NEIGHBOURS, len(points) - 1)
    if num_neighbours < 1:
        return torch.full((len(points),), 1e-2)
    distance, _ = KDTree(points).query(points, k=num_neighbours + 1)
    mean = np.asarray(distance)[:, 1:].mean(axis=1).astype(np.float32)
    return torch.from_numpy(mean).clamp_min(_MIN_SPACING)


def make_gaussians(
    cloud: PointCloud,
    sh_degree: int,
    *,
    sigma: Tensor | None = None,
    opacity: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return splatfacto's parameters for round Gaussians on the points of a cloud.

    Args:
        cloud: Points in the frame of the splat.
        sh_degree: Degree of the spherical harmonics; 0 means plain colours behind a sigmoid.
        sigma: Standard deviation of each Gaussian, `N`, in world units; where it is 0, and by
            default everywhere, the distance to the nearest neighbours.
        opacity: Opacity of each Gaussian, `N`, in (0, 1); `SEED_OPACITY` by default.

    Returns:
        One tensor for each of `NAMES`: scales and opacities before their activations (log and
        logit), unit quaternions (w, x, y, z).
    """
    num_points = len(cloud)
    if sigma is None or not bool((sigma > 0).all()):
        spacing = neighbour_distance(cloud.xyz).to(cloud.xyz.device)
        sigma = spacing if sigma is None else torch.where(sigma > 0, sigma, spacing)
    if opacity is None:
        opacity = torch.full((num_points,), SEED_OPACITY)
    log_scale = sigma.clamp_min(_MIN_SPACING).log()[:, None].expand(-1, 3)
    rgb = cloud.rgb.float()
    dc = (rgb - 0.5) / SH_C0 if sh_degree > 0 else torch.logit(rgb, eps=1e-4)
    quats = torch.zeros(num_points, 4)
    quats[:, 0] = 1.0
    parameters = {
        "means": cloud.xyz.float(),
        "scales": log_scale,
        "quats": quats,
        "features_dc": dc,
        "features_rest": torch.zeros(num_points, (sh_degree + 1) ** 2 - 1, 3),
        "opacities": torch.logit(opacity.float()[:, None], eps=1e-4),
    }
    return {name: value.to(cloud.xyz.device).contiguous() for name, value in parameters.items()}


def append_gaussians(
    params: torch.nn.ParameterDict,
    optimizers: dict[str, torch.optim.Optimizer],
    state: StrategyState,
    new: dict[str, Tensor],
) -> None:
    """Add Gaussians in the middle of training; their optimizer moments start at zero.

    Args:
        params: The splat's parameters, replaced by longer ones.
        optimizers: One optimizer a parameter, which learn of the longer ones.
        state: The strategy's running statistics, padded with zeros.
        new: As `make_gaussians` returns them.
    """
    num_new = len(new["means"])
    for name in NAMES:
        old, optimizer = params[name], optimizers[name]
        longer = torch.nn.Parameter(torch.cat([old.detach(), new[name].to(old)]))
        moments = optimizer.state.pop(old, {})
        for key, value in moments.items():
            if key != "step":
                moments[key] = torch.cat([value, value.new_zeros(num_new, *value.shape[1:])])
        optimizer.param_groups[0]["params"] = [longer]
        optimizer.state[longer] = moments
        params[name] = longer
    for key, value in state.items():
        if isinstance(value, Tensor):
            state[key] = torch.cat([value, value.new_zeros(num_new, *value.shape[1:])])


def resize_parameter(param: torch.nn.Parameter, name: str, stored: Tensor | None) -> None:
    """Give a parameter the shape of a stored one in place, so that optimizers keep hold of it.

    Raises:
        WeightsError: Nothing is stored, or it has another SH degree.
    """
    if stored is None:
        raise WeightsError(f"The checkpoint holds no Gaussian {name}: it is not of a splat.")
    if stored.shape[1:] != param.shape[1:]:
        raise WeightsError(
            f"The checkpoint's Gaussian {name} have shape {tuple(stored.shape[1:])} and this "
            f"run's {tuple(param.shape[1:])}: train with the same SH degree."
        )
    param.data = torch.zeros(stored.shape, dtype=param.dtype, device=param.device)
    param.grad = None


def draw_points(
    confidence: Tensor, num_points: int, seed: int = 0, *, least: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Draw points without replacement, confident ones more often.

    Args:
        confidence: Confidence of each point, `N`: its weight in the draw.
        num_points: How many to draw at most.
        seed: Seed of the draw.
        least: Weight of points whose confidence is lower.

    Returns:
        Ascending indices `M` of the points drawn, and the chance `M` that each of them had.

    Raises:
        InputError: No point is to be drawn.
    """
    if num_points < 1:
        raise InputError(f"A splat starts from at least one point: num_points {num_points} came.")
    weight = confidence.detach().cpu().double().clamp_min(least)
    if len(weight) <= num_points:
        return torch.arange(len(weight)), torch.ones(len(weight))
    rng = torch.Generator().manual_seed(seed)
    # Sampling without replacement by exponential clocks (Efraimidis and Spirakis, 2006).
    clock = -torch.rand(len(weight), generator=rng, dtype=torch.float64).clamp_min(1e-300).log()
    times, drawn = torch.topk(clock / weight, num_points, largest=False)
    drawn = drawn.sort().values
    return drawn, -torch.expm1(-times.max() * weight[drawn]).float()


def thin_cloud(cloud: PointCloud, num_points: int, seed: int = 0) -> PointCloud:
    """Keep a random share of a cloud, `num_points` at most, confident points first to be drawn."""
    if len(cloud) <= num_points:
        return cloud
    drawn, _ = draw_points(cloud.confidence, num_points, seed)
    return cloud[drawn.to(cloud.xyz.device)]

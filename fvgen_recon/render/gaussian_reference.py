"""The rasteriser again, slow and obvious: every Gaussian at every pixel, all by autograd.

It is what the fast kernels are tested against; memory grows with pixels times Gaussians.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fvgen_recon.render.gaussian_cpu import Look, Splats
from fvgen_recon.render.gaussian_relocation import quaternion_rotation


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceRender:
    """Images and what they were made from."""

    colors: Float[Tensor, "C H W X"]
    """Images."""
    alphas: Float[Tensor, "C H W 1"]
    """Accumulated opacities."""
    radii: Int[Tensor, "C N"]
    """3 sigma in pixels; 0 where not seen."""
    means2d: Float[Tensor, "C N 2"]
    """Centres in pixels."""
    depths: Float[Tensor, "C N"]
    """Z-depths in world units."""
    conics: Float[Tensor, "C N 3"]
    """Upper triangles of the inverse covariances."""
    opacities: Float[Tensor, "C N"]
    """Opacities, compensated for the blur where antialiased."""
    offsets: Float[Tensor, "C P N 2"]
    """From every pixel (row by row) to every centre."""

    def absolute_gradient(self) -> Float[Tensor, "C N 2"]:
        """Return the sum over pixels of absolute gradients of means2d, after a backward pass."""
        assert self.offsets.grad is not None
        return self.offsets.grad.abs().sum(dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Projected:
    """Footprints in every camera."""

    means2d: Float[Tensor, "C N 2"]
    depths: Float[Tensor, "C N"]
    conics: Float[Tensor, "C N 3"]
    compensations: Float[Tensor, "C N"]
    radii: Int[Tensor, "C N"]


def harmonic_basis(directions: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 16"]:
    """Return the real spherical harmonics of degrees 0 to 3 in the order and signs of splats."""
    x, y, z = (directions / directions.norm(dim=-1, keepdim=True)).unbind(-1)
    pi = math.pi
    basis = [
        math.sqrt(1 / (4 * pi)) * torch.ones_like(x),
        -math.sqrt(3 / (4 * pi)) * y,
        math.sqrt(3 / (4 * pi)) * z,
        -math.sqrt(3 / (4 * pi)) * x,
        math.sqrt(15 / (4 * pi)) * x * y,
        -math.sqrt(15 / (4 * pi)) * y * z,
        math.sqrt(5 / (16 * pi)) * (3 * z * z - 1),
        -math.sqrt(15 / (4 * pi)) * x * z,
        math.sqrt(15 / (16 * pi)) * (x * x - y * y),
        -math.sqrt(35 / (32 * pi)) * y * (3 * x * x - y * y),
        math.sqrt(105 / (4 * pi)) * x * y * z,
        -math.sqrt(21 / (32 * pi)) * y * (5 * z * z - 1),
        math.sqrt(7 / (16 * pi)) * z * (5 * z * z - 3),
        -math.sqrt(21 / (32 * pi)) * x * (5 * z * z - 1),
        math.sqrt(105 / (16 * pi)) * z * (x * x - y * y),
        -math.sqrt(35 / (32 * pi)) * x * (x * x - 3 * y * y),
    ]
    return torch.stack(basis, dim=-1)


def _jacobian(points: Tensor, Ks: Tensor, look: Look) -> Tensor:
    """Return the derivative of pixel by camera position, `C N 2 3`, held near the image."""
    focal, centre = Ks[:, None, [0, 1], [0, 1]], Ks[:, None, [0, 1], [2, 2]]
    size = torch.tensor([look.width, look.height], dtype=points.dtype)
    margin = 0.15 * size / focal
    low, high = -centre / focal - margin, (size - centre) / focal + margin
    z = points[..., 2:]
    slope = torch.minimum(torch.maximum(points[..., :2] / z, low), high)
    diagonal = torch.diag_embed((focal / z).expand_as(slope))
    return torch.cat([diagonal, (-focal * slope / z)[..., None]], dim=-1)


def _project(splats: Splats, viewmats: Tensor, Ks: Tensor, look: Look) -> _Projected:
    """Project by the textbook: covariance to camera, to pixels, blurred, inverted."""
    W, t = viewmats[:, :3, :3], viewmats[:, :3, 3]
    points = torch.einsum("cij,nj->cni", W, splats.means) + t[:, None]
    shape = quaternion_rotation(splats.quats) * splats.scales[:, None]
    covariance = shape @ shape.mT
    to_pixel = _jacobian(points, Ks, look) @ W[:, None]
    sharp = to_pixel @ covariance @ to_pixel.mT
    blurred = sharp + look.eps2d * torch.eye(2, dtype=sharp.dtype)
    det = torch.linalg.det(blurred)
    inverse = torch.linalg.inv(blurred)
    ratio = (torch.linalg.det(sharp) / det).clamp_min(0)
    half = 0.5 * (blurred[..., 0, 0] + blurred[..., 1, 1])
    radius = torch.ceil(3 * torch.sqrt(half + torch.sqrt((half**2 - det).clamp_min(0.01))))
    pixels = torch.einsum("cij,cnj->cni", Ks, points)
    means2d = pixels[..., :2] / pixels[..., 2:]
    size = torch.tensor([look.width, look.height], dtype=means2d.dtype)
    reach = radius[..., None]
    seen = ((means2d + reach > 0) & (means2d - reach < size)).all(-1)
    seen &= (points[..., 2] >= look.near_plane) & (points[..., 2] <= look.far_plane)
    seen &= radius > look.radius_clip
    return _Projected(
        means2d=means2d,
        depths=points[..., 2],
        conics=torch.stack([inverse[..., 0, 0], inverse[..., 0, 1], inverse[..., 1, 1]], -1),
        compensations=ratio.sqrt(),
        radii=(radius * seen).int(),
    )


def _shade(splats: Splats, viewmats: Tensor, look: Look) -> Tensor:
    """Return the `C N D` colours that the cameras see."""
    num_cameras, num_splats = viewmats.shape[0], splats.means.shape[0]
    if look.sh_degree is None:
        return splats.colors.expand(num_cameras, num_splats, -1)
    used = (look.sh_degree + 1) ** 2
    directions = splats.means - torch.linalg.inv(viewmats)[:, None, :3, 3]
    basis = harmonic_basis(directions)[..., :used, None]
    return ((basis * splats.colors[..., :used, :]).sum(-2) + 0.5).clamp_min(0)


def _touches(projected: _Projected, centres: Tensor, tile_size: int) -> Bool[Tensor, "C P N"]:
    """Tell for which pixels the tile is touched by the square around a footprint."""
    tile = torch.floor(centres / tile_size)[None, :, None]
    reach = projected.radii[..., None] / tile_size
    middle = projected.means2d.detach() / tile_size
    first, end = torch.floor(middle - reach), torch.ceil(middle + reach)
    inside = (tile >= first[:, None]) & (tile < end[:, None])
    return inside.all(-1) & (projected.radii > 0)[:, None]


def _blend(
    projected: _Projected, opacities: Tensor, colors: Tensor, look: Look
) -> tuple[Tensor, Tensor, Tensor]:
    """Return blended colours `C P D`, transmittances `C P` and offsets `C P N 2`."""
    rows, columns = torch.meshgrid(
        torch.arange(look.height), torch.arange(look.width), indexing="ij"
    )
    centres = torch.stack([columns, rows], dim=-1).reshape(-1, 2).to(colors.dtype) + 0.5
    offsets = projected.means2d[:, None] - centres[None, :, None]
    if offsets.requires_grad:
        offsets.retain_grad()
    a, b, c = projected.conics[:, None].unbind(-1)
    dx, dy = offsets.unbind(-1)
    sigma = 0.5 * (a * dx**2 + c * dy**2) + b * dx * dy
    alpha = (opacities[:, None] * torch.exp(-sigma)).clamp_max(0.999)
    counts = _touches(projected, centres, look.tile_size) & (alpha >= 1 / 255) & (sigma >= 0)
    order = torch.argsort(projected.depths.detach(), dim=-1, stable=True)[:, None]
    order = order.expand_as(alpha)
    alpha = torch.where(counts, alpha, 0.0).gather(-1, order)
    through = torch.cumprod(1 - alpha, dim=-1)
    alpha = torch.where(through > 1e-4, alpha, 0.0)
    through = torch.cumprod(1 - alpha, dim=-1)
    before = torch.cat([torch.ones_like(through[..., :1]), through], dim=-1)
    weight = alpha * before[..., :-1]
    nearest_first = colors.gather(1, order[:, 0, :, None].expand_as(colors))
    return torch.einsum("cpn,cnd->cpd", weight, nearest_first), before[..., -1], offsets


def rasterize_reference(
    splats: Splats,
    viewmats: Float[Tensor, "C 4 4"],
    Ks: Float[Tensor, "C 3 3"],
    backgrounds: Float[Tensor, "C D"] | None,
    look: Look,
) -> ReferenceRender:
    """Rasterise without tiles, kernels or hand-written gradients."""
    num_cameras = viewmats.shape[0]
    projected = _project(splats, viewmats, Ks, look)
    opacities = splats.opacities.expand(num_cameras, -1)
    if look.is_antialiased:
        opacities = opacities * projected.compensations
    channels = []
    if look.render_mode.startswith("RGB"):
        channels.append(_shade(splats, viewmats, look))
    if look.render_mode != "RGB":
        channels.append(projected.depths[..., None])
    flat, light, offsets = _blend(projected, opacities, torch.cat(channels, -1), look)
    size = (num_cameras, look.height, look.width)
    image, light = flat.reshape(*size, -1), light.reshape(*size, 1)
    depth = image[..., -1:]
    if look.render_mode in ("ED", "RGB+ED"):
        depth = depth / (1 - light).clamp_min(1e-10)
    rgb = image if look.render_mode == "RGB" else image[..., :-1]
    if backgrounds is not None and look.render_mode.startswith("RGB"):
        rgb = rgb + light * backgrounds[:, None, None]
    colors = rgb if look.render_mode == "RGB" else torch.cat([rgb, depth], dim=-1)
    return ReferenceRender(
        colors=colors,
        alphas=1 - light,
        radii=projected.radii,
        means2d=projected.means2d,
        depths=projected.depths,
        conics=projected.conics,
        opacities=opacities,
        offsets=offsets,
    )

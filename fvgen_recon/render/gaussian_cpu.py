"""The CPU rasteriser: projection, colours, tiles and blending joined by autograd."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fvgen_recon.render.gaussian_harmonics import MAX_DEGREE, shade_harmonics
from fvgen_recon.render.gaussian_kernel import to_array
from fvgen_recon.render.gaussian_projection import Lens, project_gaussians
from fvgen_recon.render.gaussian_tile import (
    Footprints,
    Grid,
    Pixels,
    Squares,
    Tiling,
    bin_footprints,
    blend_tiles,
    blend_tiles_backward,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Splats:
    """Gaussians to rasterise, after all activations."""

    means: Float[Tensor, "N 3"]
    """World positions."""
    quats: Float[Tensor, "N 4"]
    """Rotations (w, x, y, z) of any length."""
    scales: Float[Tensor, "N 3"]
    """Standard deviations in world units."""
    opacities: Float[Tensor, "N"]
    """Opacities in [0, 1]."""
    colors: Float[Tensor, "..."]
    """`(C) N D` colours, or `(C) N K 3` harmonics where a degree is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How to rasterise; the meaning of each field is that of the argument of `rasterize`."""

    width: int
    height: int
    near_plane: float
    far_plane: float
    radius_clip: float
    eps2d: float
    sh_degree: int | None
    packed: bool
    tile_size: int
    render_mode: str
    absgrad: bool
    is_antialiased: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Projected:
    """Footprints: `C N ...`, or `M ...` for those that are seen where packed."""

    camera_ids: Int[Tensor, "M"] | None
    """Camera of each packed footprint."""
    gaussian_ids: Int[Tensor, "M"] | None
    """Gaussian of each packed footprint."""
    radii: Int[Tensor, "*shape"]
    """3 sigma in pixels; 0 where not seen."""
    means2d: Float[Tensor, "*shape 2"]
    """Centres in pixels."""
    depths: Float[Tensor, "*shape"]
    """Z-depths in world units."""
    conics: Float[Tensor, "*shape 3"]
    """Upper triangles of the inverse covariances."""
    opacities: Float[Tensor, "*shape"]
    """Opacities, compensated for the blur where antialiased."""
    colors: Float[Tensor, "*shape D"]
    """What is blended."""


class _Blend(torch.autograd.Function):
    """Blending as one differentiable step; `absgrad` lands on `means2d`, as with gsplat."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any,
        means2d: Tensor,
        conics: Tensor,
        opacities: Tensor,
        colors: Tensor,
        tiling: Tiling,
        num_cameras: int,
        absgrad: bool,
    ) -> tuple[Tensor, Tensor]:
        splats = _to_footprints(means2d, conics, opacities, colors)
        pixels = blend_tiles(tiling, splats, num_cameras)
        color, light = torch.from_numpy(pixels.color), torch.from_numpy(pixels.transmittance)
        ctx.save_for_backward(means2d, conics, opacities, colors, color, light)
        ctx.tiling, ctx.last, ctx.absgrad = tiling, pixels.last, absgrad
        return color, light

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        means2d, conics, opacities, colors, color, light = ctx.saved_tensors
        pixels = Pixels(color.numpy(), light.numpy(), ctx.last)
        splats = _to_footprints(means2d, conics, opacities, colors)
        rows = blend_tiles_backward(ctx.tiling, splats, pixels, *(to_array(g) for g in grads))
        parts = torch.from_numpy(rows).split((2, 2, 3, 1, colors.shape[-1]), dim=-1)
        v_means2d, v_absolute, v_conics, v_opacities, v_colors = parts
        if ctx.absgrad:
            means2d.absgrad = v_absolute.reshape(means2d.shape)
        return (
            v_means2d.reshape(means2d.shape),
            v_conics.reshape(conics.shape),
            v_opacities.reshape(opacities.shape),
            v_colors.reshape(colors.shape),
            None,
            None,
            None,
        )


def _to_footprints(
    means2d: Tensor, conics: Tensor, opacities: Tensor, colors: Tensor
) -> Footprints:
    return Footprints(
        to_array(means2d).reshape(-1, 2),
        to_array(conics).reshape(-1, 3),
        to_array(opacities).reshape(-1),
        to_array(colors).reshape(-1, colors.shape[-1]),
    )


def _shade(splats: Splats, viewmats: Tensor, radii: Tensor, sh_degree: int | None) -> Tensor:
    """Return the `C N D` colours that the cameras see."""
    if sh_degree is None:
        return splats.colors.expand(*radii.shape, -1)
    assert sh_degree <= MAX_DEGREE
    positions = torch.linalg.inv(viewmats)[:, None, :3, 3]
    shared = splats.colors.dim() == 3
    coefficients = splats.colors[None] if shared else splats.colors
    shade = shade_harmonics(sh_degree, splats.means[None] - positions, coefficients, radii)
    return (shade + 0.5).clamp_min(0.0)


def _project(splats: Splats, viewmats: Tensor, Ks: Tensor, look: Look) -> Projected:
    """Project and colour the Gaussians, and append the depth where the mode asks for it."""
    lens = Lens(
        float(look.width),
        float(look.height),
        look.eps2d,
        look.near_plane,
        look.far_plane,
        look.radius_clip,
    )
    radii, means2d, depths, conics, compensations = project_gaussians(
        splats.means, splats.quats, splats.scales, viewmats, Ks, lens
    )
    opacities = splats.opacities.expand(*radii.shape)
    if look.is_antialiased:
        opacities = opacities * compensations
    colors = _shade(splats, viewmats, radii, look.sh_degree)
    parts = (radii, means2d, depths, conics, opacities, colors)
    cameras = gaussians = None
    if look.packed:
        cameras, gaussians = torch.nonzero(radii, as_tuple=True)
        parts = tuple(part[cameras, gaussians] for part in parts)
    radii, means2d, depths, conics, opacities, colors = parts
    if look.render_mode in ("RGB+D", "RGB+ED"):
        colors = torch.cat([colors, depths[..., None]], dim=-1)
    elif look.render_mode in ("D", "ED"):
        colors = depths[..., None]
    return Projected(
        camera_ids=cameras,
        gaussian_ids=gaussians,
        radii=radii,
        means2d=means2d,
        depths=depths,
        conics=conics,
        opacities=opacities,
        colors=colors,
    )


def _bin(projected: Projected, num_cameras: int, look: Look) -> Tiling:
    rows, columns = (math.ceil(n / look.tile_size) for n in (look.height, look.width))
    cameras = projected.camera_ids
    if cameras is None:
        num_gaussians = projected.radii.shape[1]
        cameras = torch.arange(num_cameras).repeat_interleave(num_gaussians)
    squares = Squares(
        to_array(projected.means2d).reshape(-1, 2),
        to_array(projected.radii).reshape(-1),
        to_array(projected.depths).reshape(-1),
        to_array(cameras),
    )
    grid = Grid(look.tile_size, rows, columns, look.height, look.width)
    return bin_footprints(squares, num_cameras, grid)


def _describe(projected: Projected, tiling: Tiling, look: Look, num_cameras: int) -> dict[str, Any]:
    """Return gsplat's dictionary of intermediate results."""
    grid = tiling.grid
    starts, firsts = torch.from_numpy(tiling.starts), torch.from_numpy(tiling.firsts)
    ids = torch.from_numpy(tiling.ids)
    num_tiles = grid.rows * grid.columns
    bins = torch.arange(num_cameras * num_tiles).repeat_interleave(starts.diff())
    place = (bins // num_tiles) << num_tiles.bit_length() | bins % num_tiles
    depths = projected.depths.detach().float().flatten().view(torch.int32)
    return {
        "camera_ids": projected.camera_ids,
        "gaussian_ids": projected.gaussian_ids,
        "radii": projected.radii,
        "means2d": projected.means2d,
        "depths": projected.depths,
        "conics": projected.conics,
        "opacities": projected.opacities,
        "tile_width": grid.columns,
        "tile_height": grid.rows,
        "tiles_per_gauss": firsts.diff().int().reshape(projected.radii.shape),
        "isect_ids": place << 32 | depths[ids.long()].long(),
        "flatten_ids": ids,
        "isect_offsets": starts[:-1].int().reshape(num_cameras, grid.rows, grid.columns),
        "width": look.width,
        "height": look.height,
        "tile_size": look.tile_size,
        "n_cameras": num_cameras,
    }


def _over(colors: Tensor, light: Tensor, backgrounds: Tensor | None, render_mode: str) -> Tensor:
    """Blend colours over the backgrounds; depth has none."""
    if backgrounds is None or render_mode in ("D", "ED"):
        return colors
    behind = light * backgrounds[:, None, None]
    if render_mode == "RGB":
        return colors + behind
    return torch.cat([colors[..., :-1] + behind, colors[..., -1:]], dim=-1)


def rasterize_cpu(
    splats: Splats,
    viewmats: Float[Tensor, "C 4 4"],
    Ks: Float[Tensor, "C 3 3"],
    backgrounds: Float[Tensor, "C D"] | None,
    look: Look,
) -> tuple[Float[Tensor, "C H W X"], Float[Tensor, "C H W 1"], dict[str, Any]]:
    """Rasterise on the CPU; see `fvgen_recon.render.gaussian.rasterize`."""
    num_cameras = viewmats.shape[0]
    projected = _project(splats, viewmats, Ks, look)
    tiling = _bin(projected, num_cameras, look)
    info = _describe(projected, tiling, look, num_cameras)
    colors, light = _Blend.apply(  # pyright: ignore
        projected.means2d,
        projected.conics,
        projected.opacities,
        projected.colors,
        tiling,
        num_cameras,
        look.absgrad,
    )
    light = light[..., None]
    alphas = 1.0 - light
    colors = _over(colors, light, backgrounds, look.render_mode)
    if look.render_mode in ("ED", "RGB+ED"):
        expected = colors[..., -1:] / alphas.clamp_min(1e-10)
        colors = torch.cat([colors[..., :-1], expected], dim=-1)
    return colors, alphas, info

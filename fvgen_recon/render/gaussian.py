"""3D Gaussians to images behind one function: gsplat on CUDA, our own kernels on the CPU.

The function has the names, shapes, defaults and results of gsplat 1.4's `rasterization`, for the
part of it that splats from photos need.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
"""What to render: colour, accumulated depth, expected depth, or colour and a depth behind it."""
RasterizeMode = Literal["classic", "antialiased"]
"""Whether opacities make up for the blur of the smallest footprints (Mip-Splatting)."""


def rasterize(  # noqa: PLR0913, PLR0917 - the signature is gsplat's
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    opacities: Float[Tensor, "N"],
    colors: Float[Tensor, "..."],
    viewmats: Float[Tensor, "C 4 4"],
    Ks: Float[Tensor, "C 3 3"],
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Float[Tensor, "C D"] | None = None,
    render_mode: RenderMode = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: RasterizeMode = "classic",
    channel_chunk: int = 32,
) -> tuple[Float[Tensor, "C H W X"], Float[Tensor, "C H W 1"], dict[str, Any]]:
    """Rasterise Gaussians into images.

    Differentiable in all tensors but `Ks`. On the CPU results and gradients do not depend on the
    number of threads; tensors may be float32 or float64 there.

    Args:
        means: World positions.
        quats: Rotations as quaternions (w, x, y, z) of any length.
        scales: Standard deviations along the Gaussians' axes, in world units.
        opacities: Opacities in [0, 1].
        colors: Colours `N D` or `C N D`; with `sh_degree`, harmonics `N K 3` or `C N K 3`.
        viewmats: World-to-camera motions, OpenCV axes.
        Ks: Intrinsics in pixels; the centre of pixel (row i, column j) is (j+0.5, i+0.5).
        width: Image width in pixels.
        height: Image height in pixels.
        near_plane: Gaussians with centres nearer than this are left out.
        far_plane: Gaussians with centres farther than this are left out.
        radius_clip: Footprints of this radius (pixels) or less are left out.
        eps2d: Blur added to the footprints' variances, in squared pixels.
        sh_degree: Degree of the harmonics to evaluate (on the CPU 0 to 3); none for plain colours.
        packed: Return the intermediate results of the Gaussians seen only, one row each.
        tile_size: Side of a tile in pixels.
        backgrounds: Colours behind everything; none for black.
        render_mode: What to render.
        sparse_grad: Sparse gradients, on CUDA only.
        absgrad: Put the sums of absolute gradients on `info["means2d"].absgrad` in the backward
            pass (AbsGS).
        rasterize_mode: Whether to compensate opacities for the blur.
        channel_chunk: Channels a call of gsplat's kernels; of no effect on the CPU.

    Returns:
        Images (colour channels last), accumulated opacities, and gsplat's dictionary of
        intermediate results, among them `means2d` (`C N 2`; keeps a gradient after
        `retain_grad()`), `radii` (always `C N`; packed: one a row), `depths`, `conics`,
        `opacities`, `gaussian_ids` and `camera_ids` (packed only), `width`, `height`,
        `n_cameras`. Of Gaussians with a radius of 0 the other entries mean nothing.

    Raises:
        InputError: Colours do not fit the Gaussians or the degree, or an option does not exist on
            the CPU.
    """
    shape = (viewmats.shape[0], means.shape[0])
    _check_colors(colors, shape, sh_degree)
    _check_tensors(means, tile_size)
    shared = {
        "near_plane": near_plane,
        "far_plane": far_plane,
        "radius_clip": radius_clip,
        "eps2d": eps2d,
        "sh_degree": sh_degree,
        "packed": packed,
        "tile_size": tile_size,
        "render_mode": render_mode,
        "absgrad": absgrad,
    }
    if means.is_cuda:
        from gsplat import rasterization

        images, alphas, info = rasterization(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height,
            backgrounds=backgrounds, sparse_grad=sparse_grad, rasterize_mode=rasterize_mode,
            channel_chunk=channel_chunk, **shared,
        )  # fmt: skip
        return images, alphas, _one_radius(info, packed)
    if sparse_grad:
        raise InputError("Sparse gradients exist on CUDA only: pass sparse_grad=False on the CPU.")
    from fvgen_recon.render.gaussian_cpu import Look, Splats, rasterize_cpu

    splats = Splats(means=means, quats=quats, scales=scales, opacities=opacities, colors=colors)
    is_antialiased = rasterize_mode == "antialiased"
    look = Look(width=width, height=height, is_antialiased=is_antialiased, **shared)
    return rasterize_cpu(splats, viewmats, Ks, backgrounds, look)


def _one_radius(info: dict[str, Any], packed: bool) -> dict[str, Any]:
    """Reduce gsplat 1.5's radii (one an axis) to 1.4's (the larger)."""
    radii = info["radii"]
    num_axes = 1 if packed else 2
    if radii.dim() > num_axes:
        info["radii"] = radii.amax(dim=-1)
    return info


def _check_colors(colors: Tensor, shape: tuple[int, int], sh_degree: int | None) -> None:
    """Check that the colours are those of the Gaussians, and enough harmonics for the degree."""
    own = 2 if sh_degree is None else 3
    fits = (colors.dim() == own and colors.shape[0] == shape[1]) or (
        colors.dim() == own + 1 and colors.shape[:2] == shape
    )
    wanted = "N D" if sh_degree is None else "N K 3"
    if not fits or (sh_degree is not None and colors.shape[-1] != 3):
        raise InputError(
            f"Colours of shape {wanted} or C {wanted} were expected for N={shape[1]} Gaussians and "
            f"C={shape[0]} cameras (sh_degree={sh_degree}): {tuple(colors.shape)} came."
        )
    if sh_degree is not None and colors.shape[-2] < (sh_degree + 1) ** 2:
        raise InputError(
            f"Degree {sh_degree} needs {(sh_degree + 1) ** 2} harmonics a channel: "
            f"{colors.shape[-2]} came."
        )
    if sh_degree is not None and sh_degree > 3 and not colors.is_cuda:
        raise InputError(f"The CPU knows harmonics up to degree 3: degree {sh_degree} came.")


def _check_tensors(means: Tensor, tile_size: int) -> None:
    if tile_size < 1 or means.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"Tiles of at least one pixel and float32 or float64 tensors were expected: "
            f"{tile_size} and {means.dtype} came."
        )

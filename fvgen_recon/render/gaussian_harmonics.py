"""View-dependent colours from spherical harmonics up to degree 3, on the CPU.

Real harmonics in the order and with the signs of 3D Gaussian splatting, evaluated as polynomials
(Sloan, "Efficient spherical harmonic evaluation", JCGT 2013).
"""

from typing import Any, NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fvgen_recon.render.gaussian_kernel import kernel, run_chunks, to_array

MAX_DEGREE = 3
"""Highest degree that the kernels know."""

_CHUNK = 4096

_C0 = 0.28209479177387814
_C1 = 0.4886025119029199
_C2 = 1.0925484305920792
_C2_ZZ = 0.94617469575756
_C2_0 = 0.31539156525252
_C3_Z3 = 1.8658816629505769
_C3_Z = 1.1195289977703462
_C3_XZZ = 2.285228997322329
_C3_X = 0.4570457994644658
_C3_XYZ = 2.890611442640554
_C3_XXX = 0.5900435899266435


class _Inputs(NamedTuple):
    """The arrays of a shading: `C N 3`, `S N K 3` and `C N`."""

    directions: np.ndarray
    coefficients: np.ndarray
    radii: np.ndarray


@kernel
@no_type_check
def _evaluate(degree, x, y, z, basis):
    """Write the basis functions of a unit direction."""
    basis[0] = _C0
    if degree >= 1:
        basis[1], basis[2], basis[3] = -_C1 * y, _C1 * z, -_C1 * x
    if degree >= 2:
        basis[4], basis[5], basis[7] = _C2 * x * y, -_C2 * y * z, -_C2 * x * z
        basis[6] = _C2_ZZ * z * z - _C2_0
        basis[8] = 0.5 * _C2 * (x * x - y * y)
    if degree >= 3:
        tilt = -_C3_XZZ * z * z + _C3_X
        basis[9] = -_C3_XXX * y * (3.0 * x * x - y * y)
        basis[10] = _C3_XYZ * x * y * z
        basis[11], basis[13] = tilt * y, tilt * x
        basis[12] = z * (_C3_Z3 * z * z - _C3_Z)
        basis[14] = 0.5 * _C3_XYZ * z * (x * x - y * y)
        basis[15] = -_C3_XXX * x * (x * x - 3.0 * y * y)


@kernel
@no_type_check
def _evaluate_backward(degree, x, y, z, v):
    """Return the gradient of the polynomials in x, y and z, given that of the basis `v`."""
    vx, vy, vz = 0.0, 0.0, 0.0
    if degree >= 1:
        vx, vy, vz = -_C1 * v[3], -_C1 * v[1], _C1 * v[2]
    if degree >= 2:
        vx += _C2 * (y * v[4] - z * v[7] + x * v[8])
        vy += _C2 * (x * v[4] - z * v[5] - y * v[8])
        vz += _C2 * (-y * v[5] - x * v[7]) + 2.0 * _C2_ZZ * z * v[6]
    if degree >= 3:
        tilt = -_C3_XZZ * z * z + _C3_X
        vx += _C3_XYZ * (y * z * v[10] + x * z * v[14]) + tilt * v[13]
        vx -= _C3_XXX * (6.0 * x * y * v[9] + 3.0 * (x * x - y * y) * v[15])
        vy += _C3_XYZ * (x * z * v[10] - y * z * v[14]) + tilt * v[11]
        vy -= _C3_XXX * (3.0 * (x * x - y * y) * v[9] - 6.0 * x * y * v[15])
        vz += _C3_XYZ * (x * y * v[10] + 0.5 * (x * x - y * y) * v[14])
        vz += (3.0 * _C3_Z3 * z * z - _C3_Z) * v[12]
        vz -= 2.0 * _C3_XZZ * z * (y * v[11] + x * v[13])
    return vx, vy, vz


@kernel
@no_type_check
def _shade(start, stop, degree, inputs, colors):
    """Colour Gaussians start..stop for every camera; what is not seen stays zero."""
    directions, coefficients, radii = inputs
    basis = np.empty(16)
    for camera in range(directions.shape[0]):
        own = min(camera, coefficients.shape[0] - 1)
        for splat in range(start, stop):
            if radii[camera, splat] <= 0:
                continue
            x, y, z = directions[camera, splat]
            scale = 1.0 / np.sqrt(np.float64(x) * x + np.float64(y) * y + np.float64(z) * z)
            _evaluate(degree, x * scale, y * scale, z * scale, basis)
            for channel in range(3):
                total = 0.0
                for k in range((degree + 1) ** 2):
                    total += basis[k] * coefficients[own, splat, k, channel]
                colors[camera, splat, channel] = total


@kernel
@no_type_check
def _shade_backward(start, stop, degree, inputs, v_colors, v):
    """Write the gradients `v` of coefficients and directions."""
    directions, coefficients, radii = inputs
    v_directions, v_coefficients, _ = v
    basis, v_basis = np.empty(16), np.empty(16)
    for camera in range(directions.shape[0]):
        own = min(camera, coefficients.shape[0] - 1)
        for splat in range(start, stop):
            if radii[camera, splat] <= 0:
                continue
            x, y, z = directions[camera, splat]
            scale = 1.0 / np.sqrt(np.float64(x) * x + np.float64(y) * y + np.float64(z) * z)
            x, y, z = x * scale, y * scale, z * scale
            _evaluate(degree, x, y, z, basis)
            for k in range((degree + 1) ** 2):
                total = 0.0
                for channel in range(3):
                    v_color = v_colors[camera, splat, channel]
                    total += v_color * coefficients[own, splat, k, channel]
                    v_coefficients[own, splat, k, channel] += basis[k] * v_color
                v_basis[k] = total
            vx, vy, vz = _evaluate_backward(degree, x, y, z, v_basis)
            along = vx * x + vy * y + vz * z
            v_directions[camera, splat, 0] = scale * (vx - along * x)
            v_directions[camera, splat, 1] = scale * (vy - along * y)
            v_directions[camera, splat, 2] = scale * (vz - along * z)


class _Harmonics(torch.autograd.Function):
    """The kernels above as one differentiable step."""

    @staticmethod
    def forward(
        ctx: Any, degree: int, directions: Tensor, coefficients: Tensor, radii: Tensor
    ) -> Tensor:
        colors = torch.zeros(directions.shape, dtype=directions.dtype)
        inputs = _Inputs(to_array(directions), to_array(coefficients), to_array(radii))
        run_chunks(_shade, directions.shape[1], _CHUNK, degree, inputs, colors.numpy())
        ctx.save_for_backward(directions, coefficients, radii)
        ctx.degree = degree
        return colors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        directions, coefficients, radii = ctx.saved_tensors
        v_directions = torch.zeros(directions.shape, dtype=directions.dtype)
        v_coefficients = torch.zeros(coefficients.shape, dtype=coefficients.dtype)
        inputs = _Inputs(to_array(directions), to_array(coefficients), to_array(radii))
        v = _Inputs(v_directions.numpy(), v_coefficients.numpy(), inputs.radii)
        v_colors = to_array(grads[0])
        run_chunks(_shade_backward, directions.shape[1], _CHUNK, ctx.degree, inputs, v_colors, v)
        return None, v_directions, v_coefficients, None


def shade_harmonics(
    degree: int,
    directions: Float[Tensor, "C N 3"],
    coefficients: Float[Tensor, "S N K 3"],
    radii: Int[Tensor, "C N"],
) -> Float[Tensor, "C N 3"]:
    """Evaluate spherical harmonics towards the Gaussians that are seen.

    Args:
        degree: Degree to evaluate; K may hold more coefficients than it needs.
        directions: From the camera to the Gaussian, of any length.
        coefficients: Coefficients for each camera, or for all of them together (S = 1).
        radii: Only Gaussians of a positive radius are evaluated; the others are 0.

    Returns:
        Colours, without the offset of 0.5 that splats add.
    """
    return _Harmonics.apply(degree, directions, coefficients, radii)  # pyright: ignore

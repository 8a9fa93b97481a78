"""Gaussians to the image plane, on the CPU: EWA splatting with a hand-written backward.

The projection is linear around each centre (Zwicker et al., "EWA splatting", 2002, eq. 24-31): with
the view rotation W, the Jacobian J of the perspective map, the Gaussian's rotation R and scales S,
the footprint's covariance is T T^T for T = J W R S. Conventions and thresholds are gsplat 1.4's.
Kernels compute in double precision, whatever the tensors hold: it costs little here and keeps
elongated footprints exact.
"""

from typing import Any, NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fvgen_recon.render.gaussian_kernel import kernel, run_chunks, to_array

_CHUNK = 2048
_LARGEST_RADIUS = float(2**30)


class Lens(NamedTuple):
    """What all cameras of a call share."""

    width: float
    """Image width in pixels."""
    height: float
    """Image height in pixels."""
    eps2d: float
    """Blur added to the footprints' variances, in squared pixels."""
    near: float
    """Least z-depth of a centre."""
    far: float
    """Largest z-depth of a centre."""
    radius_clip: float
    """Footprints of this radius (pixels) or less are left out."""


class _Inputs(NamedTuple):
    """The arrays of a projection: `N ...` of Gaussians, `C ...` of cameras."""

    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray
    w2c: np.ndarray
    K: np.ndarray


class _Outputs(NamedTuple):
    """The results of a projection, or their gradients: `C*N ...`."""

    radii: np.ndarray
    means2d: np.ndarray
    depths: np.ndarray
    conics: np.ndarray
    compensations: np.ndarray


class _Gradients(NamedTuple):
    """Gradients of the inputs; that of w2c in one part for each range of Gaussians."""

    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray
    w2c: np.ndarray


class _Factors(NamedTuple):
    """Scratch: the factors of T = J W R S and their products from the left."""

    J: np.ndarray
    R: np.ndarray
    JW: np.ndarray
    JWR: np.ndarray
    T: np.ndarray


@kernel
@no_type_check
def _rotate(quat, rotation):
    """Write the rotation of a quaternion (w, x, y, z) of any length; return one over its length."""
    inverse = 1.0 / max(
        np.sqrt(
            np.float64(quat[0]) * quat[0]
            + np.float64(quat[1]) * quat[1]
            + np.float64(quat[2]) * quat[2]
            + np.float64(quat[3]) * quat[3]
        ),
        1e-12,
    )
    w, x, y, z = quat[0] * inverse, quat[1] * inverse, quat[2] * inverse, quat[3] * inverse
    rotation[0, 0] = 1.0 - 2.0 * (y * y + z * z)
    rotation[0, 1] = 2.0 * (x * y - w * z)
    rotation[0, 2] = 2.0 * (x * z + w * y)
    rotation[1, 0] = 2.0 * (x * y + w * z)
    rotation[1, 1] = 1.0 - 2.0 * (x * x + z * z)
    rotation[1, 2] = 2.0 * (y * z - w * x)
    rotation[2, 0] = 2.0 * (x * z - w * y)
    rotation[2, 1] = 2.0 * (y * z + w * x)
    rotation[2, 2] = 1.0 - 2.0 * (x * x + y * y)
    return inverse


@kernel
@no_type_check
def _rotate_backward(quat, inverse, v, v_quat):
    """Add the gradient of a quaternion, given that of its rotation `v`."""
    w, x, y, z = quat[0] * inverse, quat[1] * inverse, quat[2] * inverse, quat[3] * inverse
    vw = x * (v[2, 1] - v[1, 2]) + y * (v[0, 2] - v[2, 0]) + z * (v[1, 0] - v[0, 1])
    vx = y * (v[0, 1] + v[1, 0]) + z * (v[0, 2] + v[2, 0]) + w * (v[2, 1] - v[1, 2])
    vy = x * (v[0, 1] + v[1, 0]) + z * (v[1, 2] + v[2, 1]) + w * (v[0, 2] - v[2, 0])
    vz = x * (v[0, 2] + v[2, 0]) + y * (v[1, 2] + v[2, 1]) + w * (v[1, 0] - v[0, 1])
    vx -= 2.0 * x * (v[1, 1] + v[2, 2])
    vy -= 2.0 * y * (v[0, 0] + v[2, 2])
    vz -= 2.0 * z * (v[0, 0] + v[1, 1])
    # Lengthening a quaternion changes nothing: its gradient has no part along it.
    along = vw * w + vx * x + vy * y + vz * z
    v_quat[0] += 2.0 * inverse * (vw - along * w)
    v_quat[1] += 2.0 * inverse * (vx - along * x)
    v_quat[2] += 2.0 * inverse * (vy - along * y)
    v_quat[3] += 2.0 * inverse * (vz - along * z)


@kernel
@no_type_check
def _transform(w2c, mean):
    """Return a world point in camera axes."""
    x = w2c[0, 0] * mean[0] + w2c[0, 1] * mean[1] + w2c[0, 2] * mean[2] + w2c[0, 3]
    y = w2c[1, 0] * mean[0] + w2c[1, 1] * mean[1] + w2c[1, 2] * mean[2] + w2c[1, 3]
    z = w2c[2, 0] * mean[0] + w2c[2, 1] * mean[1] + w2c[2, 2] * mean[2] + w2c[2, 3]
    return x, y, z


@kernel
@no_type_check
def _slopes(x, y, z, K, lens):
    """Return x/z and y/z held within the field of view and 15 % beyond each of its edges.

    Far outside, the linearisation is too poor to be followed.
    """
    margin_x, margin_y = 0.15 * lens.width / K[0, 0], 0.15 * lens.height / K[1, 1]
    high_x, low_x = (lens.width - K[0, 2]) / K[0, 0] + margin_x, -K[0, 2] / K[0, 0] - margin_x
    high_y, low_y = (lens.height - K[1, 2]) / K[1, 1] + margin_y, -K[1, 2] / K[1, 1] - margin_y
    return min(max(x / z, low_x), high_x), min(max(y / z, low_y), high_y)


@kernel
@no_type_check
def _scratch():
    """Allocate factors."""
    small, square = (2, 3), (3, 3)
    return _Factors(
        np.zeros(small), np.zeros(square), np.zeros(small), np.zeros(small), np.zeros(small)
    )


@kernel
@no_type_check
def _factor(W, K, depth, slopes, scale, f):
    """Write J, J W, J W R and T = J W R S for the rotation R that stands in the factors `f`."""
    f.J[0, 0], f.J[0, 2] = K[0, 0] / depth, -K[0, 0] * slopes[0] / depth
    f.J[1, 1], f.J[1, 2] = K[1, 1] / depth, -K[1, 1] * slopes[1] / depth
    for i in range(2):
        for k in range(3):
            f.JW[i, k] = f.J[i, i] * W[i, k] + f.J[i, 2] * W[2, k]
    for i in range(2):
        for k in range(3):
            f.JWR[i, k] = f.JW[i, 0] * f.R[0, k] + f.JW[i, 1] * f.R[1, k] + f.JW[i, 2] * f.R[2, k]
            f.T[i, k] = f.JWR[i, k] * scale[k]


@kernel
@no_type_check
def _covariance(T, eps2d):
    """Return the blurred covariance, its determinant and the determinant before the blur."""
    a = T[0, 0] * T[0, 0] + T[0, 1] * T[0, 1] + T[0, 2] * T[0, 2]
    b = T[0, 0] * T[1, 0] + T[0, 1] * T[1, 1] + T[0, 2] * T[1, 2]
    c = T[1, 0] * T[1, 0] + T[1, 1] * T[1, 1] + T[1, 2] * T[1, 2]
    before = a * c - b * b
    a, c = a + eps2d, c + eps2d
    return a, b, c, a * c - b * b, before


@kernel
@no_type_check
def _project(start, stop, inputs, lens, out):
    """Project items start..stop of all pairs (camera, Gaussian); what is culled stays zero."""
    num_splats = inputs.means.shape[0]
    factors = _scratch()
    for item in range(start, stop):
        camera, splat = item // num_splats, item % num_splats
        w2c, K = inputs.w2c[camera], inputs.K[camera]
        x, y, z = _transform(w2c, inputs.means[splat])
        if not lens.near <= z <= lens.far:
            continue
        _rotate(inputs.quats[splat], factors.R)
        _factor(w2c, K, z, _slopes(x, y, z, K, lens), inputs.scales[splat], factors)
        a, b, c, det, before = _covariance(factors.T, lens.eps2d)
        if not 0.0 < det < np.inf:
            continue
        half = 0.5 * (a + c)
        radius = np.ceil(3.0 * np.sqrt(half + np.sqrt(max(0.01, half * half - det))))
        u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
        outside = u + radius <= 0 or u - radius >= lens.width
        outside = outside or v + radius <= 0 or v - radius >= lens.height
        if outside or radius <= lens.radius_clip:
            continue
        out.radii[item] = np.int32(min(radius, _LARGEST_RADIUS))
        out.means2d[item, 0], out.means2d[item, 1] = u, v
        out.depths[item] = z
        out.conics[item, 0], out.conics[item, 1], out.conics[item, 2] = c / det, -b / det, a / det
        out.compensations[item] = np.sqrt(max(0.0, before / det))


@kernel
@no_type_check
def _covariance_backward(T, eps2d, v_conic, v_compensation):
    """Return the gradient of the (symmetric) covariance from those of conic and compensation."""
    a, b, c, det, before = _covariance(T, eps2d)
    p, q, r = c / det, -b / det, a / det
    # d(M^-1) = -M^-1 dM M^-1, with half of the off-diagonal gradient on either side.
    half = 0.5 * v_conic[1]
    left_00, left_01 = p * v_conic[0] + q * half, p * half + q * v_conic[2]
    left_10, left_11 = q * v_conic[0] + r * half, q * half + r * v_conic[2]
    g00 = -(left_00 * p + left_01 * q)
    g01 = -(left_00 * q + left_01 * r)
    g11 = -(left_10 * q + left_11 * r)
    if v_compensation != 0.0 and before > 0.0:
        # The square of the compensation is det(M - eps I) / det(M).
        square = before / det
        v_square = 0.5 * v_compensation / (np.sqrt(square) + 1e-6)
        g00 += v_square * ((1.0 - square) * p - eps2d / det)
        g01 += v_square * (1.0 - square) * q
        g11 += v_square * ((1.0 - square) * r - eps2d / det)
    return g00, g01, g11


@kernel
@no_type_check
def _factor_backward(g, W, scale, f, v, sums):
    """From the covariance's gradient g = (g00, g01, g11) write those of the factors to `v`.

    The gradients of the scales and of W are added to `sums`.
    """
    v_scale, v_W = sums
    for k in range(3):
        v_0 = 2.0 * (g[0] * f.T[0, k] + g[1] * f.T[1, k])
        v_1 = 2.0 * (g[1] * f.T[0, k] + g[2] * f.T[1, k])
        v_scale[k] += v_0 * f.JWR[0, k] + v_1 * f.JWR[1, k]
        v.JWR[0, k], v.JWR[1, k] = v_0 * scale[k], v_1 * scale[k]
    for i in range(3):
        for k in range(3):
            v.R[i, k] = f.JW[0, i] * v.JWR[0, k] + f.JW[1, i] * v.JWR[1, k]
    for i in range(2):
        row = v.JWR[i]
        for k in range(3):
            v.JW[i, k] = row[0] * f.R[k, 0] + row[1] * f.R[k, 1] + row[2] * f.R[k, 2]
            v_W[i, k] += f.J[i, i] * v.JW[i, k]
            v_W[2, k] += f.J[i, 2] * v.JW[i, k]
        v.J[i, i] = v.JW[i, 0] * W[i, 0] + v.JW[i, 1] * W[i, 1] + v.JW[i, 2] * W[i, 2]
        v.J[i, 2] = v.JW[i, 0] * W[2, 0] + v.JW[i, 1] * W[2, 1] + v.JW[i, 2] * W[2, 2]


@kernel
@no_type_check
def _slope_backward(coordinate, z, slope, focal, v_axis, v_slant):
    """Return the gradients of a camera coordinate and of z, given those of J's row.

    The row holds focal / z and -focal * slope / z, where slope is coordinate / z or its limit.
    """
    v_coordinate = 0.0
    v_z = (-focal * v_axis + focal * slope * v_slant) / (z * z)
    if slope == coordinate / z:
        v_coordinate = -focal * v_slant / (z * z)
        v_z += focal * slope * v_slant / (z * z)
    return v_coordinate, v_z


@kernel
@no_type_check
def _point_backward(v_point, w2c, mean, v_mean, v_w2c):
    """Add the gradients of a mean and of its camera, given that of the mean in camera axes."""
    for i in range(3):
        v_w2c[i, 3] += v_point[i]
        for k in range(3):
            v_w2c[i, k] += v_point[i] * mean[k]
            v_mean[k] += v_point[i] * w2c[i, k]


@kernel
@no_type_check
def _project_backward(start, stop, inputs, lens, v, out):
    """Add the gradients of Gaussians start..stop over all cameras; `v.radii` are the radii."""
    num_splats = inputs.means.shape[0]
    factors, v_factors = _scratch(), _scratch()
    for camera in range(inputs.w2c.shape[0]):
        w2c, K = inputs.w2c[camera], inputs.K[camera]
        v_w2c = out.w2c[start // _CHUNK, camera]
        for splat in range(start, stop):
            item = camera * num_splats + splat
            if v.radii[item] <= 0:
                continue
            mean, scale, quat = inputs.means[splat], inputs.scales[splat], inputs.quats[splat]
            x, y, z = _transform(w2c, mean)
            slopes = _slopes(x, y, z, K, lens)
            inverse = _rotate(quat, factors.R)
            _factor(w2c, K, z, slopes, scale, factors)
            g = _covariance_backward(factors.T, lens.eps2d, v.conics[item], v.compensations[item])
            _factor_backward(g, w2c, scale, factors, v_factors, (out.scales[splat], v_w2c))
            _rotate_backward(quat, inverse, v_factors.R, out.quats[splat])
            v_J = v_factors.J
            v_x, v_zx = _slope_backward(x, z, slopes[0], K[0, 0], v_J[0, 0], v_J[0, 2])
            v_y, v_zy = _slope_backward(y, z, slopes[1], K[1, 1], v_J[1, 1], v_J[1, 2])
            v_u, v_v = K[0, 0] * v.means2d[item, 0] / z, K[1, 1] * v.means2d[item, 1] / z
            v_z = v.depths[item] + v_zx + v_zy - (v_u * x + v_v * y) / z
            v_point = (v_x + v_u, v_y + v_v, v_z)
            _point_backward(v_point, w2c, mean, out.means[splat], v_w2c)


class _Projection(torch.autograd.Function):
    """The kernels above as one differentiable step."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        lens: Lens,
    ) -> tuple[Tensor, ...]:
        shape = (viewmats.shape[0], means.shape[0])
        radii = torch.zeros(shape, dtype=torch.int32)
        outputs = [means.new_zeros(*shape, *tail) for tail in ((2,), (), (3,), ())]
        arrays = [to_array(t).reshape(-1, *t.shape[2:]) for t in (radii, *outputs)]
        inputs = _to_inputs(means, quats, scales, viewmats, Ks)
        run_chunks(_project, radii.numel(), _CHUNK, inputs, lens, _Outputs(*arrays))
        ctx.save_for_backward(means, quats, scales, viewmats, Ks, radii)
        ctx.lens = lens
        ctx.mark_non_differentiable(radii)
        return (radii, *outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        means, quats, scales, viewmats, Ks, radii = ctx.saved_tensors
        v = _Outputs(*(to_array(t).reshape(-1, *t.shape[2:]) for t in (radii, *grads[1:])))
        inputs = _to_inputs(means, quats, scales, viewmats, Ks)
        num_parts = -(-means.shape[0] // _CHUNK)
        shapes = (means.shape, quats.shape, scales.shape, (num_parts, *viewmats.shape))
        sums = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        out = _Gradients(*(t.numpy() for t in sums))
        run_chunks(_project_backward, means.shape[0], _CHUNK, inputs, ctx.lens, v, out)
        sums[3] = sums[3].sum(0)
        return (*(t.to(means.dtype) for t in sums), None, None)


def _to_inputs(
    means: Tensor, quats: Tensor, scales: Tensor, viewmats: Tensor, Ks: Tensor
) -> _Inputs:
    return _Inputs(*(to_array(t) for t in (means, quats, scales, viewmats.double(), Ks.double())))


def project_gaussians(
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    viewmats: Float[Tensor, "C 4 4"],
    Ks: Float[Tensor, "C 3 3"],
    lens: Lens,
) -> tuple[
    Int[Tensor, "C N"],
    Float[Tensor, "C N 2"],
    Float[Tensor, "C N"],
    Float[Tensor, "C N 3"],
    Float[Tensor, "C N"],
]:
    """Project Gaussians into every camera.

    Args:
        means: World positions.
        quats: Rotations as quaternions (w, x, y, z) of any length.
        scales: Standard deviations along the Gaussians' axes, in world units.
        viewmats: World-to-camera motions, OpenCV axes. Differentiable.
        Ks: Intrinsics in pixels. Not differentiable.
        lens: Image size and limits.

    Returns:
        radii (3 sigma in pixels, rounded up; 0 for what is not seen), means2d (pixels), depths
        (along z), conics (upper triangle of the inverse covariance in pixels^-2) and compensations
        (the factor that keeps a footprint's mass under the blur of `eps2d`). All are 0 where
        the radius is.
    """
    return _Projection.apply(means, quats, scales, viewmats, Ks, lens)  # pyright: ignore

"""Conversions between camera conventions: the only place where an axis is flipped.

Inside the project cameras are OpenCV (x right, y down, z forward). nerfstudio and Blender use
OpenGL (x right, y up, z backward); PyTorch3D uses x left, y up, z forward with row vectors.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def opengl_to_opencv(c2w: Float[Tensor, "*B 4 4"]) -> Float[Tensor, "*B 4 4"]:
    """Turn OpenGL camera-to-world poses into OpenCV ones (the map is its own inverse)."""
    return c2w * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=c2w.dtype, device=c2w.device)


def opencv_to_opengl(c2w: Float[Tensor, "*B 4 4"]) -> Float[Tensor, "*B 4 4"]:
    """Turn OpenCV camera-to-world poses into OpenGL ones."""
    return opengl_to_opencv(c2w)


def opencv_to_pytorch3d(
    w2c: Float[Tensor, "*B 4 4"],
) -> tuple[Float[Tensor, "*B 3 3"], Float[Tensor, "*B 3"]]:
    """Return PyTorch3D's `R` and `T` (points are row vectors: x_view = x @ R + T)."""
    flip = torch.tensor([-1.0, -1.0, 1.0], dtype=w2c.dtype, device=w2c.device)
    return (flip[:, None] * w2c[..., :3, :3]).mT, flip * w2c[..., :3, 3]

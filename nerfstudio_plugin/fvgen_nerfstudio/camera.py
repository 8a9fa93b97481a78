"""Between this project's cameras (OpenCV) and nerfstudio's (OpenGL)."""

import torch
from nerfstudio.cameras.cameras import Cameras as NerfCameras
from nerfstudio.cameras.cameras import CameraType
from torch import Tensor

from fvgen_recon.geometry.conventions import opencv_to_opengl, opengl_to_opencv
from fvgen_recon.types import Cameras


def to_nerfstudio(cameras: Cameras) -> NerfCameras:
    """Return nerfstudio cameras of the same poses; a single camera becomes a batch of one."""
    c2w = cameras.c2w.reshape(-1, 4, 4)
    K = cameras.K.reshape(-1, 3, 3)
    return NerfCameras(
        camera_to_worlds=opencv_to_opengl(c2w)[:, :3].contiguous(),
        fx=K[:, 0, 0].contiguous(),
        fy=K[:, 1, 1].contiguous(),
        cx=K[:, 0, 2].contiguous(),
        cy=K[:, 1, 2].contiguous(),
        width=cameras.width,
        height=cameras.height,
        camera_type=CameraType.PERSPECTIVE,
    )


def view_matrices(camera_to_worlds: Tensor) -> Tensor:
    """Return OpenCV world-to-camera matrices `B 4 4` of OpenGL camera-to-world ones `B 3 4`.

    Gradients reach the poses, so that nerfstudio's camera optimizer works.
    """
    bottom = camera_to_worlds.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(camera_to_worlds), 1, 4)
    c2w = opengl_to_opencv(torch.cat([camera_to_worlds[:, :3], bottom], dim=1))
    rotation = c2w[:, :3, :3].mT
    translation = -rotation @ c2w[:, :3, 3:]
    return torch.cat([torch.cat([rotation, translation], dim=2), bottom], dim=1)

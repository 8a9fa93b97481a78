"""Between this project's cameras (OpenCV) and nerfstudio's (OpenGL)."""

from dataclasses import dataclass

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
        metadata={},  # ns-export cameras asks for it.
    )


VIEW = "view"
"""Key of a camera's `KnownView` in its metadata."""
MEMBER = "member"
"""Key of the member of the splat that a training step with a camera is for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownView:
    """What a render needs of a camera, worked out once.

    nerfstudio keeps cameras as tensors on the device, so that asking for the size of an image makes
    the host wait for the GPU, and cutting one camera out of many takes as long as a render.
    """

    height: int
    width: int
    K: Tensor
    """Intrinsics `1 3 3`."""
    viewmat: Tensor
    """World to camera `1 4 4`, OpenCV axes."""


def known_view(camera: NerfCameras) -> KnownView:
    """Return what a render needs of one camera: from its metadata, or worked out now."""
    known = (camera.metadata or {}).get(VIEW)
    if known is not None:
        return known
    return KnownView(
        height=int(camera.height.item()),
        width=int(camera.width.item()),
        K=camera.get_intrinsics_matrices().reshape(1, 3, 3),
        viewmat=view_matrices(camera.camera_to_worlds.reshape(1, 3, 4)),
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

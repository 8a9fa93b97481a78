"""The photos of a capture in the splat's frame: inputs at once, held-out ones one by one.

nerfstudio's hyperparameters ask for a world whose cameras fill a unit cube with z up. The map into
that frame is computed from the input cameras alone.
"""

from dataclasses import dataclass, replace
from threading import Lock

import torch
from jaxtyping import Float
from nerfstudio.cameras.camera_utils import auto_orient_and_center_poses
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from fvgen_nerfstudio.loss import WINDOW
from fvgen_recon.densify.size import fit_scene, working_size
from fvgen_recon.errors import InputError
from fvgen_recon.geometry.conventions import opencv_to_opengl
from fvgen_recon.io.scenes import (
    Capture,
    ViewSplit,
    load_frame,
    load_scene,
    photo_size,
    smallest_size,
    view_camera,
)
from fvgen_recon.io.scenes.loading import cover_crop
from fvgen_recon.types import Cameras, PointCloud, Scene

_MANY = 40
"""Input photos beyond which a user waits long for points on a CPU."""
_NO_UP = 1e-3
"""Length of the mean of unit vectors below which it is rounding and no direction."""


@dataclass(frozen=True)
class Similarity:
    """The map x -> scale (R x + t) from the capture's world into the splat's."""

    motion: Tensor
    """R and t, `3 4`."""
    scale: float
    """Scale, applied last."""

    def cameras(self, cameras: Cameras) -> Cameras:
        """Move cameras."""
        motion = self.motion.to(cameras.c2w)
        c2w = cameras.c2w.clone()
        c2w[..., :3, :] = motion[:, :3] @ cameras.c2w[..., :3, :]
        c2w[..., :3, 3] = self.scale * (c2w[..., :3, 3] + motion[:, 3])
        return replace(cameras, c2w=c2w)

    def points(self, cloud: PointCloud) -> PointCloud:
        """Move points."""
        motion = self.motion.to(cloud.xyz)
        xyz = self.scale * (cloud.xyz @ motion[:, :3].mT + motion[:, 3])
        others = tuple(self.points(other) for other in cloud.alternatives)
        return replace(cloud, xyz=xyz, alternatives=others)

    def scene(self, scene: Scene) -> Scene:
        """Move a scene."""
        points = None if scene.points is None else self.points(scene.points)
        return replace(scene, cameras=self.cameras(scene.cameras), points=points)


def fit_similarity(cameras: Cameras) -> Similarity:
    """Return the map that puts z up, the cameras' mean at 0 and the farthest within 1 an axis.

    Up is the mean of the cameras' own, or the first one's where these cancel, as they do in two
    photos of which one was taken upside down.
    """
    poses = opencv_to_opengl(cameras.c2w).clone()
    if float(poses[:, :3, 1].mean(dim=0).norm()) < _NO_UP:
        poses[:, :3, 1] = poses[0, :3, 1]
    oriented, motion = auto_orient_and_center_poses(poses, method="up", center_method="poses")
    reach = float(oriented[:, :3, 3].abs().max())
    return Similarity(motion=motion, scale=1.0 / reach if reach > 1e-9 else 1.0)


class SceneSource:
    """A capture with its chosen views, at one image size, in the splat's frame.

    Args:
        capture: Names, files and native cameras of all frames.
        split: Which frames are inputs and which are held out.
        long_side: Longer image side in pixels; 0 keeps the photos' own size.

    Raises:
        InputError: There are fewer than two input views, one of them cannot be read, or they are
            too small.
    """

    def __init__(self, capture: Capture, split: ViewSplit, long_side: int) -> None:
        if len(split.inputs) < 2:
            raise InputError(
                f"A splat needs at least two input views: {len(split.inputs)} came from "
                f"{capture.folder}."
            )
        self.capture = capture
        self.split = split
        self._lock = Lock()
        self._scene: Scene | None = None
        self._photo_size = photo_size(capture, split.inputs[0])
        self._whole_size = whole = smallest_size(capture, split.inputs)
        self.size = working_size(*whole, long_side, 1) if long_side > 0 else whole
        if min(self.size) < WINDOW:
            raise InputError(
                f"Photos of {self.size[0]}x{self.size[1]} (height x width) are smaller than SSIM's "
                f"window of {WINDOW}x{WINDOW}: give larger ones, or another --pipeline.datamanager."
                "dataparser.long-side (0 keeps their size)."
            )
        native = [capture.cameras[i] for i in split.inputs]
        self.similarity = fit_similarity(
            replace(
                native[0],
                c2w=torch.stack([camera.c2w for camera in native]),
                K=torch.stack([camera.K for camera in native]),
            )
        )

    @property
    def scene(self) -> Scene:
        """The input views; their files are opened on first use."""
        with self._lock:  # A cached property has none from Python 3.12 on: each thread opens all.
            if self._scene is None:
                height, width = self.size
                scene = load_scene(self.capture, self.split.inputs, height=height, width=width)
                self._scene = self.similarity.scene(scene)
            return self._scene

    def image(self, view: int) -> Float[Tensor, "3 H W"]:
        """Return the photo of a frame; a held-out one is opened now and not kept."""
        if view in self.split.inputs:
            return self.scene.images[self.split.inputs.index(view)]
        image, camera = load_frame(self.capture, view)
        return cover_crop(image, camera, *self.size)[0]

    def cameras(self, views: tuple[int, ...]) -> Cameras:
        """Return the cameras of frames at the chosen image size; no file is opened.

        Photos that were all resized after their intrinsics were written are taken to be resized as
        the first input is.
        """
        fitted = [self._fit_camera(view) for view in views]
        stacked = replace(
            fitted[0],
            c2w=torch.stack([camera.c2w for camera in fitted]),
            K=torch.stack([camera.K for camera in fitted]),
        )
        return self.similarity.cameras(stacked)

    def _fit_camera(self, view: int) -> Cameras:
        """Follow with a camera what `load_frame` and `cover_crop` do to its photo."""
        ratio = self._photo_size[0] / self.capture.cameras[self.split.inputs[0]].height
        camera = self.capture.cameras[view]
        on_disk = (round(camera.height * ratio), round(camera.width * ratio))
        height, width = self.size
        return view_camera(self.capture, view, on_disk, height=height, width=width)

    def estimate_points(self, estimator: str, long_side: int) -> PointCloud:
        """Return the point cloud of the input views in the splat's frame.

        Raises:
            InputError: The estimator is unknown, or the views do not suit it.
        """
        from fvgen_recon.pointcloud import make_estimator

        device = "cuda" if torch.cuda.is_available() else "cpu"
        num_photos = len(self.split.inputs)
        if device == "cpu" and num_photos > _MANY:
            CONSOLE.log(
                f"Seeking points in {num_photos} photos, each of which is compared with all others:"
                " on a CPU that takes minutes. --views 12 trains on twelve that spread."
            )
        source = make_estimator(estimator)
        return source.estimate(self.small_scene(long_side).to(device)).to("cpu")

    def small_scene(self, long_side: int) -> Scene:
        """Return the input views with a longer side of at most `long_side` pixels.

        That may be larger than the size that is trained on: depth is found better in more pixels.
        """
        size = working_size(*self._whole_size, long_side, 1)
        if size[0] <= self.size[0] and size[1] <= self.size[1]:
            return fit_scene(self.scene, *size)
        scene = load_scene(self.capture, self.split.inputs, height=size[0], width=size[1])
        return self.similarity.scene(scene)

"""Renders mixed with a generator's frames of the same pose, outside of training.

A splat and a generator err in different places, so that a mean of both is nearer to the truth than
either, and what tells which of them is right in a pixel nearer still: a small network, the fusion.
What is mixed in belongs to the render: the Gaussians, and a file that they are exported to, know
nothing of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras as NerfCameras
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.scene_box import OrientedBox
from torch import Tensor

from fvgen_nerfstudio.camera import known_view
from fvgen_nerfstudio.ensemble import SPREAD
from fvgen_nerfstudio.exposure import Exposure
from fvgen_nerfstudio.opacity import ExportedModel
from fvgen_nerfstudio.settings import FvgenModelConfig
from fvgen_recon.errors import InputError
from fvgen_recon.fusion.view import FusionView, ViewFacts
from fvgen_recon.geometry.conventions import opengl_to_opencv
from fvgen_recon.types import Cameras

UNREFINED = "splat"
"""Name of the output that shows the splat alone."""
_WORTH = 3
"""Photos that a splat must learn from to be as good as a frame."""


@dataclass
class RefineSettings:
    """What renders are mixed with. Flat, so that the `config.yml` of an old run can be read."""

    generator: str = "none"
    """Which generator makes a frame of each pose that is rendered outside of training (regression,
    student, teacher, fill), or `none`. An exported .ply shows the splat alone."""
    weights: Path | None = None
    """Folder of the generator's weights; none means those that the package brings."""
    num_steps: int | None = None
    """Network evaluations a clip; none means the generator's own number."""
    num_frames: int | None = None
    """Length of the clip that leads from one input through the pose to another; none means 5, or
    what a full-size model makes."""
    long_side: int = 512
    """Longest image side that the generator works at, in pixels; twice that of the render is
    enough."""
    fusion: str = "default"
    """How both are put together: `learned` (a network weighs them in every pixel), `mean`, or
    `default`: learned where the package brings weights and no `weight` is set."""
    fusion_weights: Path | None = None
    """Folder of the weights of that network; none means those that the package brings."""
    weight: float | None = None
    """Share of the frame in the mean, in [0, 1]; none counts it as one more member of the splat up
    to three inputs, and less the more inputs there are."""
    seed: int = 0
    """Seed of the generator."""

    def share(self, num_members: int, num_inputs: int) -> float:
        """Return the share of the frame beside the mean of so many members of the splat.

        A clip is made of two photos however many there are, while a splat learns from all: a member
        counts by its photos, the frame as much as a member that has learnt from three.
        """
        if self.weight is not None:
            return self.weight
        return _WORTH / (_WORTH + num_members * max(num_inputs, _WORTH))


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseFrame:
    """A generator's frame of a single pose, with what it was made of."""

    image: Float[Tensor, "3 H W"]
    """In [0, 1]."""
    trusted: Float[Tensor, "1 H W"]
    """1 where a trusted point was rendered; between at other sizes than the generator's."""
    layered: Float[Tensor, "1 H W"]
    """1 where a dense layer of an input was rendered."""
    scale: float
    """Pixels of the generator's, along a side, for one of the frame."""
    angle: float
    """Angle in radians between the viewing directions of the pose and of the nearest input."""
    distance: float
    """Distance to the nearest input over the median distance between inputs."""


class FrameSource(Protocol):
    """Makes frames at single poses, and puts them together with renders."""

    settings: RefineSettings
    """How much they count."""

    def frame(self, camera: Cameras) -> PoseFrame | None:
        """Return a frame of a single camera; none where there is nothing to say."""
        ...

    def fuse(self, view: FusionView) -> Float[Tensor, "1 3 H W"]:
        """Return the image of one view whose render and frame are given, in [0, 1]."""
        ...


class RefinableModel(ExportedModel):
    """A splat whose images are mixed with frames, where it has a source of them.

    With a source the image is `rgb`, the splat's own render is the output `splat`, and `spread` is
    how far members differ. Image and render are the same where the source has no frame or a crop
    box cuts the splat. Depth and accumulation stay those of the splat.
    """

    config: FvgenModelConfig
    exposure: Exposure
    frame_source: FrameSource | None = None
    """Not a module: neither checkpoints nor optimizers meet it."""

    @torch.no_grad()
    def get_outputs_for_camera(
        self, camera: NerfCameras, obb_box: OrientedBox | None = None
    ) -> dict[str, Tensor]:
        """Render one camera for a viewer, a file or a measurement."""
        outputs: dict[str, Any] = super().get_outputs_for_camera(camera, obb_box)
        if self.frame_source is None:
            return outputs
        outputs[UNREFINED] = outputs["rgb"]
        pose = None if obb_box is not None else pinhole(camera)
        frame = None if pose is None else self.frame_source.frame(pose)
        if frame is None:
            return outputs
        image = self.frame_source.fuse(self._fusion_view(outputs, frame, camera))
        outputs["rgb"] = image[0].permute(1, 2, 0)
        return outputs

    def _fusion_view(
        self, outputs: dict[str, Any], frame: PoseFrame, camera: NerfCameras
    ) -> FusionView:
        """Return what is known of a view, at the brightness of the photos around."""
        assert self.frame_source is not None
        splat, spread, opacity = (
            outputs[name].permute(2, 0, 1)[None] for name in ("rgb", SPREAD, "accumulation")
        )
        lit = self.exposure(frame.image.permute(1, 2, 0)[None].to(splat), camera).clamp(0, 1)
        num_inputs, num_members = self.num_train_data, self.config.num_members
        facts = ViewFacts(
            share=self.frame_source.settings.share(num_members, num_inputs),
            num_inputs=num_inputs,
            num_members=num_members,
            angle=frame.angle,
            distance=frame.distance,
            scale=frame.scale,
        )
        return FusionView(
            splat=splat,
            spread=spread,
            opacity=opacity.clamp(0, 1),
            frame=lit.permute(0, 3, 1, 2),
            trusted=frame.trusted[None].to(splat),
            layered=frame.layered[None].to(splat),
            facts=facts.row().to(splat),
        )


def pinhole(camera: NerfCameras) -> Cameras | None:
    """Return a single camera in this project's terms; none where it is not a rigid pinhole."""
    if not bool((camera.camera_type == CameraType.PERSPECTIVE.value).all()):
        return None
    view = known_view(camera)
    pose = camera.camera_to_worlds.reshape(3, 4)
    c2w = torch.cat([pose, pose.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    try:
        return Cameras(c2w=opengl_to_opencv(c2w), K=view.K[0], height=view.height, width=view.width)
    except InputError:
        return None

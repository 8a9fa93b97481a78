"""A generator asked for single frames. Imports the front half, so it is imported when asked for."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_nerfstudio.refinement import PoseFrame, RefineSettings
from fvgen_recon.densify.densifier import Inputs
from fvgen_recon.densify.generators import (
    GENERATORS,
    NO_WEIGHTS,
    SHIPPED_WEIGHTS,
    GeneratorConfig,
    is_full_size,
    load_generator,
)
from fvgen_recon.densify.size import fit_scene, working_size
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.path import plan_held_out
from fvgen_recon.fusion.checkpoint import SHIPPED_FUSION, load_fusion, read_fusion_card
from fvgen_recon.fusion.network import FusionNetwork
from fvgen_recon.fusion.view import FusionView
from fvgen_recon.render.guidance import guidance_config, render_guidance
from fvgen_recon.trajectory.pose import join_rows, nearest_view
from fvgen_recon.types import Cameras, Guidance, Scene

_UNFIT = ("render", "replay")
"""Generators that leave holes, or know no new poses."""
_RULES = ("default", "learned", "mean")
_SHORT = 5
"""Frames of a clip through a pose: more cost time and change nothing."""
_LEAST_SEEN = 0.1
"""Share of a frame that points must cover: with less the frame would be a guess."""
_BELIEF = 0.6
"""Share of the fusion network's answer beside the plain rule's. Each is right where the other is
not, so that both together err less than either: measured in docs/plugin.md."""
_FINER = 2
"""How many pixels of the generator's, along a side, may go into one of the render."""


def check_refine(settings: RefineSettings) -> None:
    """Raise an `InputError` where renders cannot be refined so, before anything is trained."""
    fit = [name for name in GENERATORS if name not in _UNFIT]
    if settings.generator not in fit:
        raise InputError(
            f"No generator `{settings.generator}` can refine renders: choose one of "
            f"{', '.join(fit)} or none."
        )
    needs_weights = settings.weights is None and settings.generator not in NO_WEIGHTS
    if needs_weights and not (SHIPPED_WEIGHTS / settings.generator).is_dir():
        raise InputError(
            f"The package brings no weights of a `{settings.generator}`: name their folder with "
            "--pipeline.refine.weights."
        )
    if settings.weights is not None and not settings.weights.exists():
        raise InputError(f"There are no weights at {settings.weights}: give an existing folder.")
    if settings.weight is not None and not 0 <= settings.weight <= 1:
        raise InputError(f"The weight of a frame must lie in [0, 1]: {settings.weight:g} came.")
    if settings.num_frames is not None and settings.num_frames < 3:
        raise InputError(
            f"A clip through a pose needs at least three frames: {settings.num_frames} came."
        )
    _check_fusion(settings)


def _check_fusion(settings: RefineSettings) -> None:
    if settings.fusion not in _RULES:
        raise InputError(
            f"Render and frame cannot be put together by `{settings.fusion}`: choose one of "
            f"{', '.join(_RULES)}."
        )
    is_learned = settings.fusion == "learned" or settings.fusion_weights is not None
    if is_learned and settings.fusion != "mean" and settings.weight is not None:
        raise InputError(
            "A learned fusion finds the weight of a frame itself: give no --pipeline.refine.weight "
            "with it, or choose --pipeline.refine.fusion mean."
        )
    folder = fusion_folder(settings)
    if folder is not None:
        read_fusion_card(folder)


def fusion_folder(settings: RefineSettings) -> Path | None:
    """Return the weights of the network that renders and frames are put together by, or none."""
    folder = settings.fusion_weights or SHIPPED_FUSION
    is_there = settings.fusion_weights is not None or folder.is_dir()
    is_free = settings.fusion == "default" and settings.weight is None
    return folder if settings.fusion == "learned" or (is_free and is_there) else None


class Refiner:
    """Makes a frame of a pose as a clip from an input through the pose to another input.

    The generator, the points and the photos are loaded once, when the first frame is asked for.

    Args:
        settings: Which generator, and how.
        load_inputs: Returns the input photos at one brightness and their points.
        device: Where to work.
    """

    def __init__(
        self, settings: RefineSettings, load_inputs: Callable[[], Inputs], device: str
    ) -> None:
        check_refine(settings)
        self.settings = settings
        self.device = device
        self._load_inputs = load_inputs
        self._fitted: Scene | None = None

    @cached_property
    def inputs(self) -> Inputs:
        """The photos and points on the device."""
        inputs = self._load_inputs()
        return Inputs(scene=inputs.scene.to(self.device), points=inputs.points.to(self.device))

    @cached_property
    def generator(self) -> VideoGenerator:
        """The generator."""
        settings = self.settings
        return load_generator(
            GeneratorConfig(
                name=settings.generator,
                weights=settings.weights,
                num_steps=settings.num_steps,
                num_frames=settings.num_frames or self._own_length(),
                device=self.device,
            )
        )

    @cached_property
    def fusion(self) -> FusionNetwork | None:
        """The network that puts renders and frames together; none for the plain rule."""
        folder = fusion_folder(self.settings)
        return None if folder is None else load_fusion(folder).to(self.device)

    def _own_length(self) -> int | None:
        """Return the shortest clip that serves; a full-size model's length is its own."""
        folder = self.settings.weights
        return None if folder is not None and is_full_size(folder) else _SHORT

    def prepare(self) -> None:
        """Load everything now, so that a mistake is said at once and no frame waits for it.

        Raises:
            FvgenError: The weights are missing, or the points cannot be estimated.
        """
        _ = self.generator, self.inputs, self.fusion

    @torch.no_grad()
    def fuse(self, view: FusionView) -> Float[Tensor, "1 3 H W"]:
        """Return the image of one view: by network and plain rule, or by the plain rule alone."""
        plain = view.plain()
        image = plain if self.fusion is None else plain.lerp(self.fusion(view), _BELIEF)
        return image.clamp(0, 1)

    @torch.no_grad()
    def frame(self, camera: Cameras) -> PoseFrame | None:
        """Return a frame of a single camera, at the brightness that all photos were brought to.

        None where there are fewer than two inputs or points cover too little of the image.
        """
        if len(self.inputs.scene) < 2:
            return None
        size = (camera.height, camera.width)
        scene = self._scene_at(*self._working_size(*size))
        found = self._guide(scene, camera)
        if found is None:
            return None
        guidance, place = found
        image = self.generator.generate(guidance, seed=self.settings.seed)[place]
        masks = torch.cat([guidance.mask[place], guidance.layer_masks[:, place].any(0)])
        planes = torch.cat([image, masks.to(image)])
        if tuple(planes.shape[-2:]) != size:
            planes = F.interpolate(planes[None], size, mode="bilinear", antialias=True)[0]
        planes = planes.clamp(0, 1)
        angle, distance = nearest_view(scene.cameras, camera.to(self.device))
        scale = (image.shape[-1] * image.shape[-2] / (size[0] * size[1])) ** 0.5
        return PoseFrame(
            image=planes[:3],
            trusted=planes[3:4],
            layered=planes[4:],
            scale=scale,
            angle=angle,
            distance=distance,
        )

    def _working_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size to work at: details below a pixel of the render still come from it."""
        height, width = _FINER * height, _FINER * width
        return working_size(height, width, self.settings.long_side, self.generator.size_multiple)

    def _guide(self, scene: Scene, camera: Cameras) -> tuple[Guidance, int] | None:
        """Return a clip's guidance and the frame of it that is the camera's."""
        known = scene.cameras.to("cpu")
        pose = camera.to("cpu").resize(known.height, known.width)
        row = Cameras(c2w=pose.c2w[None], K=pose.K[None], height=pose.height, width=pose.width)
        inputs = tuple(range(len(known)))
        (path,) = plan_held_out(
            join_rows([known, row]), inputs, (len(known),), self.generator.num_frames
        )
        way = replace(path.trajectory, cameras=path.trajectory.cameras.to(self.device))
        config = guidance_config(is_raw=self.generator.is_raw, height=known.height)
        guidance = render_guidance(scene, self.inputs.points, way, config=config)
        place = path.frames[0]
        seen = guidance.mask[place] | guidance.layer_masks[:, place].any(0)
        return (guidance, place) if float(seen.float().mean()) >= _LEAST_SEEN else None

    def _scene_at(self, height: int, width: int) -> Scene:
        """Return the photos at a size; the last one is kept, as views mostly come in one size."""
        fitted = self._fitted
        if fitted is None or tuple(fitted.images.shape[-2:]) != (height, width):
            fitted = self._fitted = fit_scene(self.inputs.scene, height, width)
        return fitted

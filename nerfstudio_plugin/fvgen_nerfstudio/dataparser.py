"""Posed photos in every format that `fvgen_recon` reads, with a choice of input views.

nerfstudio discovers this module while its own datamanagers are half imported, so nothing here may
import one.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import tyro
from nerfstudio.cameras.cameras import Cameras as NerfCameras
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.base_dataparser import (
    DataParser,
    DataParserConfig,
    DataparserOutputs,
)
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor

from fvgen_nerfstudio.choice import choose_views, stands_in
from fvgen_nerfstudio.source import SceneSource
from fvgen_recon.errors import InputError
from fvgen_recon.geometry.conventions import opencv_to_opengl
from fvgen_recon.io.scenes import Lens, ViewSelection, load_capture
from fvgen_recon.types import Cameras, PointCloud, Scene

TRUSTED = 0.5
"""Confidence from which a point counts as measured."""
_FEWEST = 10
"""Fewer trusted points are no start."""
_LEAST_WEIGHT = 0.1
"""How often points of no confidence are drawn, over those of full confidence."""


@dataclass
class FvgenDataParserConfig(DataParserConfig):
    """Which photos are read, which of them are inputs, and what points to start from."""

    _target: type = field(default_factory=lambda: FvgenDataParser)
    data: Path = Path()
    """Scene folder: transforms.json, COLMAP, SEVA, Blender, or plain photos."""
    format: str | None = None
    """Name of the scene format; found out by default."""
    views: int | None = None
    """Number of photos to train on, chosen to spread over positions and directions; the others are
    held out. By default all are trained on."""
    view_names: tuple[str, ...] = ()
    """Names of the photos to train on, instead of a number."""
    split_file: Path | None = None
    """JSON file with `train_ids` and `test_ids`, instead of a number."""
    trained_views: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Names of the photos that a run was trained on, which training writes down: instead of the
    number of them, or of all, which might be others once a photo is added or removed."""
    seed: int = 0
    """Seed of the choice of views."""
    long_side: int = 0
    """Longer side of the photos in training and evaluation, in pixels; 0 keeps their size."""
    estimator: str = "plane-sweep"
    """Where the points to start from come from: plane-sweep, mvs, stereo (mvs,
    and the sweep where that is surer), dataset, dust3r or random."""
    ensemble: tuple[str, ...] = ()
    """Sources of points for a splat of several members, which are trained apart and shown together;
    where empty there is one, with the points of `estimator`."""
    method_ensemble: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The method's own `ensemble`, which gives way to whatever a user has chosen beside it."""
    ensemble_views: int = 3
    """Largest number of input photos with which there are several members; from more there is one,
    with the points of `estimator`. 0: never."""
    estimator_long_side: int = 512
    """Longer image side that points are estimated at, in pixels."""
    num_points: int = 100_000
    """Most points to start from, for each member."""
    min_confidence: float = 0.5
    """Points below this confidence are no start for a Gaussian."""
    match_exposure: bool = True
    """Whether the brightness of each photo is measured on surfaces that several show, so that the
    splat has the brightness of the mean photo and renders that of the photos around."""
    with_points: tyro.conf.Suppress[bool] = True
    """Whether points are needed at all; evaluation needs none."""

    def selection(self) -> ViewSelection:
        """Return which photos a user has chosen."""
        return ViewSelection(
            count=self.views, names=self.view_names, split=self.split_file, seed=self.seed
        )

    def sources(self, num_inputs: int) -> tuple[str, ...]:
        """Return the sources of the members' points; none where there is one, of `estimator`."""
        return self.ensemble if num_inputs <= self.ensemble_views else ()


class FvgenDataParser(DataParser):
    """Input views are the train split; held-out views are both `val` and `test`.

    Where nothing is held out, `val` and `test` are the input views: such numbers say how well the
    photos are fitted, not how well new views look.
    """

    config: FvgenDataParserConfig
    downscale_factor: int | None = None

    @cached_property
    def source(self) -> SceneSource:
        """The capture with its chosen views; the inputs are opened when first needed.

        Raises:
            InputError: There is no scene there, or the views cannot be chosen.
        """
        config = self.config
        capture = load_capture(config.data, format=config.format)
        split = choose_views(capture, config.selection(), config.trained_views)
        return SceneSource(capture, split, config.long_side)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the input photos."""
        return tuple(self.source.capture.names[view] for view in self.source.split.inputs)

    @property
    def is_trained_choice(self) -> bool:
        """Whether the input photos are those that a run has written down."""
        return stands_in(self.config.trained_views, self.config.selection())

    @cached_property
    def points(self) -> PointCloud:
        """The point cloud of the input views, in the splat's frame."""
        return self._at_one_brightness(self._points_as_shot)

    @cached_property
    def members(self) -> tuple[PointCloud, ...]:
        """The point clouds that the members of the splat start from."""
        return tuple(cloud for _, cloud in self._ensemble) or (self.points,)

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources of the members' points; none where there is one member, of `estimator`."""
        return tuple(name for name, _ in self._ensemble)

    @property
    def wanted_sources(self) -> tuple[str, ...]:
        """What `sources` is if each of them finds points."""
        return self.config.sources(len(self.source.split.inputs))

    @cached_property
    def _ensemble(self) -> tuple[tuple[str, PointCloud], ...]:
        """The members' sources and points; a source that finds too few gives no member."""
        found = ((name, self._points_of(name)) for name in self.wanted_sources)
        return tuple(pair for pair in found if self._num_trusted(pair[1]) >= _FEWEST)

    def _points_of(self, estimator: str) -> PointCloud:
        """Return the points of a member at one brightness.

        Those of `estimator` are known, and with `stereo` those of its two sources.
        """
        from fvgen_recon.pointcloud.combined import SOURCES

        if estimator == self.config.estimator:
            return self.points
        if self.config.estimator == "stereo" and estimator in SOURCES:
            return self.points.alternatives[SOURCES.index(estimator)]
        side = self.config.estimator_long_side
        return self._at_one_brightness(self.source.estimate_points(estimator, side))

    def _at_one_brightness(self, cloud: PointCloud) -> PointCloud:
        own = cloud.view >= 0
        rgb = cloud.rgb.clone()
        rgb[own] = (rgb[own] * self.gains[cloud.view[own]]).clamp(0, 1)
        others = tuple(self._at_one_brightness(other) for other in cloud.alternatives)
        return replace(cloud, rgb=rgb, alternatives=others)

    @cached_property
    def _points_as_shot(self) -> PointCloud:
        config = self.config
        return self.source.estimate_points(config.estimator, config.estimator_long_side)

    @cached_property
    def gains(self) -> Tensor:
        """Factors `V 3` that bring the input photos to one brightness; 1 where none is sought."""
        from fvgen_nerfstudio.exposure import estimate_gains

        config = self.config
        if not config.match_exposure:
            return torch.ones(len(self.source.split.inputs), 3)
        small = self.source.small_scene(config.estimator_long_side)
        return estimate_gains(small.images, small.cameras, self._points_as_shot)

    @property
    def scene(self) -> Scene:
        """The input views at one brightness; a copy of all photos, so it is not kept."""
        return self._matched(self.source.scene)

    def scene_at(self, long_side: int) -> Scene:
        """Return the input views at one brightness, with a longer side of at most so many pixels.

        That may be larger than the size that is trained on.
        """
        return self._matched(self.source.small_scene(long_side))

    def _matched(self, scene: Scene) -> Scene:
        from fvgen_nerfstudio.exposure import apply_gains

        return replace(scene, images=apply_gains(scene.images, self.gains))

    @cached_property
    def point_cameras(self) -> Cameras:
        """The input cameras at the image size that points are estimated at."""
        return self.source.small_scene(self.config.estimator_long_side).cameras

    @property
    def input_cameras(self) -> Cameras:
        """The input cameras at the size that is trained on; no photo is opened."""
        return self.source.cameras(self.source.split.inputs)

    def views_of(self, split: str) -> tuple[int, ...]:
        """Return the frames of a split."""
        chosen = self.source.split
        is_input = split == "train" or not chosen.held_out
        return chosen.inputs if is_input else chosen.held_out

    def _generate_dataparser_outputs(self, split: str = "train", **_: Any) -> DataparserOutputs:
        source = self.source
        views = self.views_of(split)
        similarity = source.similarity
        outputs = DataparserOutputs(
            image_filenames=[source.capture.paths[view] for view in views],
            cameras=self._native_cameras(views),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])),
            metadata=self._points() if split == "train" and self.config.with_points else {},
            dataparser_transform=similarity.motion,
            dataparser_scale=similarity.scale,
        )
        return outputs

    def _points(self) -> dict[str, Tensor]:
        """Return points to start from, as splatfacto wants them: colours in 0 to 255.

        With each come its confidence, the member of the splat that it is for and the width that it
        covers on the surface, in world units (0 where no view is known). The brightness of the
        photos, where they were taken and the nearest distance that they show come with them.
        """
        from fvgen_nerfstudio.depth import nearest_depth

        drawn = [self._draw(cloud) for cloud in self.members]
        kept = [cloud for cloud, _ in drawn]
        member = [torch.full((len(cloud),), i) for i, cloud in enumerate(kept)]
        return {
            "points3D_xyz": torch.cat([cloud.xyz for cloud in kept]).cpu(),
            "points3D_rgb": torch.cat([cloud.rgb * 255 for cloud in kept]).cpu(),
            "points3D_confidence": torch.cat([cloud.confidence for cloud in kept]).cpu(),
            "points3D_member": torch.cat(member),
            "points3D_spacing": torch.cat([spacing for _, spacing in drawn]),
            "photo_brightness": 1 / self.gains,
            "photo_position": self.point_cameras.position,
            "photo_nearest": torch.tensor(nearest_depth(self.points, self.point_cameras)),
        }

    @property
    def _is_random(self) -> bool:
        """Whether points are random: they claim no confidence, and who asks for them wants them."""
        return self.config.estimator == "random"

    def _num_trusted(self, cloud: PointCloud) -> int:
        """Return the number of points that can be started from."""
        return len(cloud) if self._is_random else int((cloud.confidence >= TRUSTED).sum())

    def _draw(self, cloud: PointCloud) -> tuple[PointCloud, Tensor]:
        """Return the points that a member starts from, and the width that each stands for."""
        from fvgen_nerfstudio.depth import pixel_spacing
        from fvgen_nerfstudio.gaussian import draw_points

        num_trusted = self._num_trusted(cloud)
        if num_trusted < _FEWEST:
            raise InputError(
                f"Only {num_trusted} points could be trusted among {len(cloud)}: the input views "
                "hardly overlap. Choose views that see the same things, or --pipeline.datamanager."
                "dataparser.estimator random."
            )
        least = 0.0 if self._is_random else self.config.min_confidence
        trusted = cloud[cloud.confidence >= least]
        if len(trusted) < _FEWEST:
            raise InputError(
                f"Only {len(trusted)} points of {len(cloud)} have a confidence of {least:g} or "
                "more: give a lower --pipeline.datamanager.dataparser.min-confidence."
            )
        drawn, chance = draw_points(
            trusted.confidence, self.config.num_points, self.config.seed, least=_LEAST_WEIGHT
        )
        kept = trusted[drawn.to(trusted.xyz.device)]
        # A point that was drawn with a chance of 1 in 9 stands for 3 by 3 pixels.
        return kept, pixel_spacing(kept, self.point_cameras).cpu() / chance.sqrt()

    def _native_cameras(self, views: tuple[int, ...]) -> NerfCameras:
        """Return cameras of the files as they are, distortion included, in the splat's frame.

        `FvgenDatamanager` replaces them by those of its undistorted photos; other methods'
        datamanagers undistort on their own.
        """
        source = self.source
        native = [source.capture.cameras[view] for view in views]
        lenses = [source.capture.lenses[view] for view in views]
        moved = torch.stack([source.similarity.cameras(camera).c2w for camera in native])
        K = torch.stack([camera.K for camera in native])
        types = [CameraType.FISHEYE if x.is_fisheye else CameraType.PERSPECTIVE for x in lenses]
        return NerfCameras(
            camera_to_worlds=opencv_to_opengl(moved)[:, :3].contiguous(),
            fx=K[:, 0, 0].contiguous(),
            fy=K[:, 1, 1].contiguous(),
            cx=K[:, 0, 2].contiguous(),
            cy=K[:, 1, 2].contiguous(),
            width=torch.tensor([[camera.width] for camera in native]),
            height=torch.tensor([[camera.height] for camera in native]),
            distortion_params=torch.tensor([distortion(lens) for lens in lenses]),
            camera_type=torch.tensor([[kind.value] for kind in types]),
        )


def distortion(lens: Lens) -> tuple[float, ...]:
    """Return nerfstudio's six numbers: k1 k2 k3 k4 p1 p2, or the fisheye's k1 to k4.

    Raises:
        InputError: The lens has the rational model's k4 to k6, which nerfstudio does not know.
    """
    if lens.is_fisheye:
        return (*lens.coefficients[:4], 0.0, 0.0)
    k1, k2, p1, p2, k3, k4, k5, k6 = lens.coefficients
    if k4 or k5 or k6:
        raise InputError(
            "nerfstudio cannot undistort the rational lens model (k4, k5, k6): undistort the "
            "photos first, for example with COLMAP's image_undistorter."
        )
    return (k1, k2, k3, 0.0, p1, p2)

"""Serves photos, and between them generated frames from the bank."""

import random
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras as NerfCameras
from nerfstudio.data.datamanagers.full_images_datamanager import (
    FullImageDatamanager,
    FullImageDatamanagerConfig,
)

from fvgen_nerfstudio.camera import MEMBER, VIEW, known_view, to_nerfstudio
from fvgen_nerfstudio.dataparser import FvgenDataParser, FvgenDataParserConfig
from fvgen_nerfstudio.dataset import SceneDataset
from fvgen_nerfstudio.depth import DepthTargets, collect_depth
from fvgen_recon.densify.bank import Bank, BankEntry
from fvgen_recon.densify.schedule import MixingSchedule
from fvgen_recon.errors import InputError
from fvgen_recon.types import Scene

_MIXING = MixingSchedule()
_CACHED_BYTES = 2 * 1024**3


@dataclass
class FvgenDatamanagerConfig(FullImageDatamanagerConfig):
    """Which views are trained on and how often a generated one is drawn."""

    _target: type = field(default_factory=lambda: FvgenDatamanager)
    dataparser: FvgenDataParserConfig = field(default_factory=FvgenDataParserConfig)
    """Which photos are read and which of them are inputs."""
    cache_images_type: Literal["uint8", "float32"] = "uint8"
    """How photos are kept in memory."""
    mixing_start: float = _MIXING.start
    """Progress of training at which generated views begin to be drawn."""
    mixing_end: float = _MIXING.end
    """Progress at which they stop; below 1, so that training ends on photos alone."""
    mixing_ramp: float = _MIXING.ramp
    """Length of the rise and of the fall, in progress."""
    mixing_share: float = _MIXING.share
    """Largest probability that a step draws a generated view, up to six inputs; it falls beyond."""
    mixing_weight: float = _MIXING.weight
    """Factor on the loss of a generated view, on top of its per-pixel confidence."""

    def schedule(self) -> MixingSchedule:
        """Return the schedule of generated views.

        Raises:
            InputError: The numbers make no schedule.
        """
        return MixingSchedule(
            start=self.mixing_start,
            end=self.mixing_end,
            ramp=self.mixing_ramp,
            share=self.mixing_share,
            weight=self.mixing_weight,
        )


class FvgenDatamanager(FullImageDatamanager[SceneDataset]):
    """A full-image datamanager whose train dataset is the photos, and only they.

    Generated frames never enter the dataset: its length sizes the camera optimizer and is part of
    every checkpoint. They come from a bank on the side, without a camera index.
    """

    config: FvgenDatamanagerConfig
    dataparser: FvgenDataParser

    def __init__(
        self,
        config: FvgenDatamanagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        **kwargs: Any,
    ) -> None:
        if config.camera_res_scale_factor != 1:
            raise InputError(
                "Photos are sized by --pipeline.datamanager.dataparser.long-side: a "
                f"camera-res-scale-factor of {config.camera_res_scale_factor:g} came beside it."
            )
        self.schedule = config.schedule()
        self.bank: Bank | None = None
        self.num_steps = 1
        self._entries: tuple[BankEntry, ...] = ()
        self._frames: dict[str, dict[str, Any]] = {}
        self._cameras: dict[int, NerfCameras] = {}
        # Only training needs points to start from; a checkpoint brings its own Gaussians.
        config.dataparser.with_points = test_mode == "val"
        super().__init__(config, device, test_mode, **kwargs)
        self.schedule = self.schedule.for_inputs(len(self.train_dataset))

    @property
    def scene(self) -> Scene:
        """The input views in the splat's frame, at one brightness."""
        return self.dataparser.scene

    def create_train_dataset(self) -> SceneDataset:
        """Return the photos that are trained on."""
        views = self.dataparser.views_of("train")
        return SceneDataset(self.train_dataparser_outputs, self.dataparser.source, views)

    def create_eval_dataset(self) -> SceneDataset:
        """Return the photos that are evaluated on; none is opened before it is asked for."""
        outputs = self.dataparser.get_dataparser_outputs(split=self.test_split)
        views = self.dataparser.views_of(self.test_split)
        return SceneDataset(outputs, self.dataparser.source, views)

    def _load_images(
        self, split: Literal["train", "eval"], cache_images_device: Literal["cpu", "gpu"]
    ) -> list[dict[str, torch.Tensor]]:
        """Open the photos of a split; without CUDA there is no memory to pin for a copy."""
        place = cache_images_device if torch.cuda.is_available() else "gpu"
        return super()._load_images(split, place)

    def use_bank(self, bank: Bank, rounds: Literal["latest", "all"]) -> None:
        """Serve a bank's frames from now on: those of the latest whole round, or of all."""
        self.bank = bank
        served = range(0 if rounds == "all" else bank.num_rounds - 1, bank.num_rounds)
        self._entries = tuple(e for e in bank.entries if e.origin.round in served)
        self._frames = {}

    def next_train(self, step: int) -> tuple[NerfCameras, dict[str, Any]]:
        """Return a camera and its batch: a photo, or by the schedule a generated frame.

        Whether it is a generated frame, and which, depends on the seed and the step alone; photos
        begin a new order where a run resumes. The camera's metadata say which member of the splat
        the step trains. Batches of photos carry `depth` and `depth_weight`, `1 H W` at the size
        that points were estimated at; those of generated frames carry `is_generated`, the `weight`
        of each pixel and the `factor` on their whole loss.
        """
        draw = random.Random(f"{self.config.train_cameras_sampling_seed}:{step}")
        share = self.schedule.share_at(step / self.num_steps)
        member = step % len(self.depth_targets)
        if self._entries and draw.random() < share:
            camera, batch = self._generated_view(draw.choice(self._entries))
            camera.metadata = {**(camera.metadata or {}), MEMBER: member}
            return camera, batch
        view, targets = self._next_photo(), self.depth_targets[member]
        photo, camera = self.cached_train[view], self._camera_of(view)
        camera.metadata = {**(camera.metadata or {}), MEMBER: member}
        return camera, {
            **photo,
            "image": photo["image"].to(self.device),
            "is_generated": False,
            "depth": targets.depth[view],
            "depth_weight": targets.weight[view],
        }

    def _next_photo(self) -> int:
        """Return the number of the next photo; each is drawn once before any is drawn again."""
        view = self.train_unseen_cameras.pop(0)
        if not self.train_unseen_cameras:
            self.train_unseen_cameras = self.sample_train_cameras()
        return view

    def _camera_of(self, view: int) -> NerfCameras:
        """Return the camera of a photo on the device; cut out once, which is slow."""
        if view not in self._cameras:
            camera = self.train_cameras[view : view + 1].to(self.device)
            camera.metadata = {"cam_idx": view, VIEW: known_view(camera)}
            self._cameras[view] = camera
        return self._cameras[view]

    @cached_property
    def depth_targets(self) -> tuple[DepthTargets, ...]:
        """What the points of each member say about the depth of the photos."""
        parser = self.dataparser
        found = (collect_depth(cloud, parser.point_cameras) for cloud in parser.members)
        return tuple(
            DepthTargets(depth=each.depth.to(self.device), weight=each.weight.to(self.device))
            for each in found
        )

    def _generated_view(self, entry: BankEntry) -> tuple[NerfCameras, dict[str, Any]]:
        frame = self._read_frame(entry)
        return frame["camera"], {
            "image": frame["image"],
            "weight": frame["weight"].float() / 255,
            "factor": self.schedule.weight,
            "is_generated": True,
        }

    def _read_frame(self, entry: BankEntry) -> dict[str, Any]:
        """Return a frame's camera and its 8-bit `H W C` tensors on the device, kept there."""
        assert self.bank is not None, "A frame is only asked for once a bank is in use."
        if entry.image not in self._frames:
            image, confidence = self.bank.read(entry)
            camera = to_nerfstudio(entry.camera).to(self.device)
            camera.metadata = {VIEW: known_view(camera)}
            frame = {
                "image": _to_bytes(image).to(self.device),
                "weight": _to_bytes(confidence).to(self.device),
                "camera": camera,
            }
            per_frame = frame["image"].numel() + frame["weight"].numel()
            if per_frame * (len(self._frames) + 1) > _CACHED_BYTES:
                self._frames.clear()
            self._frames[entry.image] = frame
        return self._frames[entry.image]


def _to_bytes(image: torch.Tensor) -> torch.Tensor:
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()

"""Training clips made by the project's own front half, and the bank that serves them.

Each clip holds what a generator will see (renders of a sparse cloud along a path) and the real
photos at those poses. Clips are stored as bytes, all of one shape; portrait photos are stored
transposed, which a network that sees flips anyway need not know.
"""

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Float16, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvgen_recon.distill.pack import PackedScene
from fvgen_recon.distill.pair import ClipPlan, PathPlan, path_cameras
from fvgen_recon.errors import InputError
from fvgen_recon.pointcloud.base import PointCloudEstimator
from fvgen_recon.render.guidance import render_guidance
from fvgen_recon.types import HINT_CELL_PX, Anchor, Cameras, Guidance, PointCloud, Trajectory

_log = logging.getLogger(__name__)

_CHUNK = 8
"""Plans whose clips share a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipBatch:
    """Clips of one shape as bytes; every frame has a real target."""

    frames: UInt8[Tensor, "B T 3 H W"]
    """Renders of the trusted points."""
    mask: Bool[Tensor, "B T 1 H W"]
    """True where those are trusted."""
    layers: UInt8[Tensor, "B 2 T 3 H W"]
    """Dense renders of the first and the last photo."""
    layer_masks: Bool[Tensor, "B 2 T 1 H W"]
    """True where a layer was hit."""
    target: UInt8[Tensor, "B T 3 H W"]
    """The real photos."""
    gap_deg: Float[Tensor, "B"]
    """Angle between the two ends."""
    alternatives: UInt8[Tensor, "B G T 3 H W"]
    """Renders of further guesses (`Guidance.alternatives`)."""
    alternative_masks: Bool[Tensor, "B G T 1 H W"]
    """True where one of them was hit."""
    hints: Float16[Tensor, "B S T 2 h w"]
    """Confidence and depth of all renders in cells (`Guidance.hints`)."""

    def __len__(self) -> int:
        """Number of clips."""
        return self.frames.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "ClipBatch":
        """Select clips."""
        return ClipBatch(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> "ClipBatch":
        """Move the tensors to a device."""
        return ClipBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def join_clips(batches: Sequence[ClipBatch]) -> ClipBatch:
    """Concatenate batches of one shape."""
    names = [f.name for f in fields(ClipBatch)]
    return ClipBatch(**{n: torch.cat([getattr(b, n) for b in batches]) for n in names})


def save_clips(path: Path, clips: ClipBatch) -> None:
    """Write clips to a safetensors file; it appears under its name only when complete."""
    partial = path.with_suffix(".partial")
    tensors = {f.name: getattr(clips, f.name).cpu().contiguous() for f in fields(clips)}
    save_file(tensors, partial)
    partial.replace(path)


def load_clips(path: Path) -> ClipBatch:
    """Read the clips of `save_clips`; those made without alternatives have none, hints are 0."""
    tensors = load_file(path)
    tensors.setdefault("alternatives", tensors["layers"][:, :0])
    tensors.setdefault("alternative_masks", tensors["layer_masks"][:, :0])
    count, _, num_frames, _, height, width = tensors["layers"].shape
    # As many as others have: a bank that went on filling holds clips of both kinds.
    num_renders = 1 + tensors["layers"].shape[1] + tensors["alternatives"].shape[1]
    shape = (count, num_renders, num_frames, 2, height // HINT_CELL_PX, width // HINT_CELL_PX)
    tensors.setdefault("hints", torch.zeros(shape, dtype=torch.float16))
    return ClipBatch(**tensors)


def _working_size(scene: PackedScene, crop: tuple[int, int], zoom: float) -> tuple[int, int]:
    height, width = scene.cameras.height, scene.cameras.width
    scale = max(crop[0] / height, crop[1] / width) * zoom
    return max(crop[0], round(height * scale)), max(crop[1], round(width * scale))


def _thin(cloud: PointCloud, rng: torch.Generator) -> PointCloud:
    """Sometimes lose trusted points: what a worse cloud would look like."""
    share = float(torch.rand((), generator=rng))
    if share > 0.3:
        return cloud
    keep = torch.rand(len(cloud), generator=rng).to(cloud.xyz.device) > share
    confidence = torch.where(keep, cloud.confidence, cloud.confidence.clamp_max(0.4))
    return replace(cloud, confidence=confidence)


def _disturb(cloud: PointCloud, cameras: Cameras, rng: torch.Generator) -> PointCloud:
    """Sometimes move points along their rays: by view, as wrong depth does, and each by itself."""
    if float(torch.rand((), generator=rng)) > 0.3:
        return cloud
    amount = 0.008 * float(torch.rand((), generator=rng))
    own = torch.randn(len(cloud), generator=rng).to(cloud.xyz.device)
    shared = torch.randn(len(cameras), generator=rng).to(cloud.xyz.device)
    lifted = cloud.view >= 0
    view = cloud.view.clamp_min(0)
    factor = 1 + amount * (0.7 * own + 0.7 * shared[view])
    origin = cameras.position[view]
    xyz = torch.where(lifted[:, None], origin + (cloud.xyz - origin) * factor[:, None], cloud.xyz)
    return replace(cloud, xyz=xyz)


def _exposures(count: int, rng: torch.Generator | None) -> Float[Tensor, "V 3 1 1"]:
    """Gains of the photos: half of the sets were taken with one exposure, the others nearly so."""
    if rng is None or float(torch.rand((), generator=rng)) < 0.5:
        return torch.ones(count, 3, 1, 1)
    common = 0.05 * torch.randn(count, 1, 1, 1, generator=rng)
    return torch.exp(common + 0.015 * torch.randn(count, 3, 1, 1, generator=rng))


def _along(gains: Tensor, ends: tuple[int, int], num_frames: int) -> Float[Tensor, "T 3 1 1"]:
    """Gains of a path's frames, from those of the photo at one end to those at the other."""
    share = torch.linspace(0, 1, num_frames)[:, None, None, None]
    return torch.lerp(gains[ends[0]][None], gains[ends[1]][None], share)


def plan_trajectory(path: PathPlan, cameras: Cameras) -> Trajectory:
    """Return a planned path through the poses of a scene's photos, inputs at both ends."""
    first, last = path.ends
    anchors = (Anchor(frame=0, view=first), Anchor(frame=len(path.frames) - 1, view=last))
    return Trajectory(cameras=path_cameras(cameras, path.frames), anchors=anchors)


def build_clips(
    packed: PackedScene,
    plan: ClipPlan,
    estimator: PointCloudEstimator,
    *,
    crop: tuple[int, int],
    num_crops: int,
    device: torch.device,
    rng: torch.Generator | None,
) -> ClipBatch:
    """Make the clips of one plan with the front half: one cloud, renders along its paths.

    Args:
        packed: The scene.
        plan: Inputs and paths.
        estimator: The source of the cloud.
        crop: Height and width of the clips for landscape photos.
        num_crops: Crops of the same renders, at random places.
        device: Where to compute.
        rng: Draws scale, crops, exposures, lost and moved points and the threshold of trust; none
            for the centre crop at scale 1 of what inference would see.
    """
    portrait = packed.cameras.height > packed.cameras.width
    window = (crop[1], crop[0]) if portrait else crop
    zoom, threshold = 1.0, 0.5
    if rng is not None:
        zoom = 1.0 + 0.3 * float(torch.rand((), generator=rng))
        threshold = 0.45 + 0.15 * float(torch.rand((), generator=rng))
    size = _working_size(packed, window, zoom)
    scene = packed.scene(plan.inputs, *size).to(device)
    gains = _exposures(len(plan.inputs), rng)
    scene = replace(scene, images=(scene.images * gains.to(device)).clamp(0, 1))
    cloud = estimator.estimate(scene)
    if rng is not None:
        cloud = _disturb(_thin(cloud, rng), scene.cameras, rng)
        # Undisturbed guesses beside disturbed points would teach to rely on them.
        others = tuple(_disturb(other, scene.cameras, rng) for other in cloud.alternatives)
        cloud = replace(cloud, alternatives=others)
    cameras = packed.cameras.resize(*size)
    clips = []
    for path in plan.paths:
        trajectory = plan_trajectory(path, cameras)
        trajectory = replace(trajectory, cameras=trajectory.cameras.to(device))
        guidance = render_guidance(scene, cloud, trajectory, min_confidence=threshold)
        light = _along(gains, path.ends, len(path.frames)).to(device)
        target = (_photos(packed, path.frames, size).to(device) * light).clamp(0, 1)
        for _ in range(num_crops):
            corner = _corner(size, window, rng)
            clips.append(_cut(guidance, target, path.pair.gap_deg, (*corner, *window)))
    return join_clips(clips)


def _photos(packed: PackedScene, frames: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    photos = sorted(set(frames))
    images = packed.scene(photos, *size).images
    return images[[photos.index(f) for f in frames]]


def _corner(
    size: tuple[int, int], window: tuple[int, int], rng: torch.Generator | None
) -> tuple[int, int]:
    # Whole cells of hints: they are cut with the pixels.
    rows, columns = ((size[i] - window[i]) // HINT_CELL_PX for i in range(2))
    if rng is None:
        return HINT_CELL_PX * (rows // 2), HINT_CELL_PX * (columns // 2)
    top, left = (
        HINT_CELL_PX * int(torch.randint(f + 1, (1,), generator=rng)) for f in (rows, columns)
    )
    return top, left


def _cut(
    guidance: Guidance, target: Tensor, gap_deg: float, window: tuple[int, int, int, int]
) -> ClipBatch:
    top, left, height, width = window

    def crop(x: Tensor) -> Tensor:
        x = x[..., top : top + height, left : left + width]
        x = x.mT if height > width else x
        return x if x.dtype == torch.bool else (x.clamp(0, 1) * 255).round().to(torch.uint8)

    assert guidance.alternatives is not None
    assert guidance.alternative_masks is not None
    assert guidance.hints is not None
    return ClipBatch(
        frames=crop(guidance.frames)[None],
        mask=crop(guidance.mask)[None],
        layers=crop(guidance.layers[:2])[None],
        layer_masks=crop(guidance.layer_masks[:2])[None],
        target=crop(target)[None],
        gap_deg=torch.tensor([gap_deg], device=target.device),
        alternatives=crop(guidance.alternatives)[None],
        alternative_masks=crop(guidance.alternative_masks)[None],
        hints=_cut_cells(guidance.hints, window)[None].half(),
    )


def _cut_cells(hints: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    top, left, height, width = (side // HINT_CELL_PX for side in window)
    cells = hints[..., top : top + height, left : left + width]
    return cells.mT if height > width else cells


class ClipBank:
    """Clips on one device, read from a folder that may still be filling.

    Args:
        folder: Where the chunks are.
        device: Where clips are kept.
        seed: Decides what is drawn.
        max_clips: Read no more chunks when there are so many clips, for processes that share a
            GPU; which chunks is the same for every seed. None for all.
    """

    def __init__(
        self, folder: Path, device: torch.device, seed: int, *, max_clips: int | None = None
    ) -> None:
        self.folder, self.device, self.max_clips = folder, device, max_clips
        self.rng = torch.Generator().manual_seed(seed)
        self.chunks: list[ClipBatch] = []
        self.read: set[Path] = set()

    def __len__(self) -> int:
        """Number of clips read so far."""
        return sum(len(c) for c in self.chunks)

    def refresh(self) -> None:
        """Read chunks that were finished since the last call."""
        fresh = sorted(set(self.folder.glob("*.safetensors")) - self.read)
        if self.max_clips is not None:  # The first ones by name come from one worker alone.
            random.Random(0).shuffle(fresh)
        for path in fresh:
            if self.max_clips is not None and len(self) >= self.max_clips:
                return
            self.chunks.append(load_clips(path).to(self.device))
            self.read.add(path)

    def all(self) -> ClipBatch:
        """Return every clip read so far."""
        return join_clips(self.chunks)

    def draw(self, count: int) -> ClipBatch:
        """Return random clips, from a few random chunks each."""
        weights = torch.tensor([float(len(c)) for c in self.chunks])
        owners = torch.multinomial(weights, count, replacement=True, generator=self.rng)
        parts = []
        for owner in owners.unique().tolist():
            chunk, wanted = self.chunks[owner], int((owners == owner).sum())
            index = torch.randint(len(chunk), (wanted,), generator=self.rng)
            parts.append(chunk[index.to(self.device)])
        return join_clips(parts)


def write_bank(
    scenes: Sequence[PackedScene],
    plans: Sequence[ClipPlan],
    folder: Path,
    estimator: PointCloudEstimator,
    *,
    crop: tuple[int, int],
    num_crops: int,
    device: torch.device,
    seed: int | None,
) -> None:
    """Build clips into chunks of a folder; chunks that exist are kept.

    Args:
        scenes: The scenes that the plans speak of.
        plans: The clips to make; every 8 plans become one chunk.
        folder: Where the chunks go.
        estimator: The source of clouds.
        crop: Height and width of clips.
        num_crops: Crops a plan.
        device: Where to compute.
        seed: Seed of the augmentation; none to make the plain centre crops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(math.ceil(len(plans) / _CHUNK)):
        name = "plain" if seed is None else str(seed)
        path = folder / f"{name}-{index:04d}.safetensors"
        if path.exists():
            continue
        rng = None if seed is None else torch.Generator().manual_seed(seed * 100_003 + index)
        chunk = plans[_CHUNK * index : _CHUNK * (index + 1)]
        write_chunk(
            path, scenes, chunk, estimator, crop=crop, num_crops=num_crops, device=device, rng=rng
        )


def write_chunk(
    path: Path,
    scenes: Sequence[PackedScene],
    plans: Sequence[ClipPlan],
    estimator: PointCloudEstimator,
    *,
    crop: tuple[int, int],
    num_crops: int,
    device: torch.device,
    rng: torch.Generator | None,
) -> None:
    """Build the clips of some plans into one file; `build_clips` says what the arguments mean.

    Inputs that were drawn at random need not be matchable; those are left out.
    """
    clips = []
    for plan in plans:
        packed = scenes[plan.scene]
        try:
            clips.append(
                build_clips(
                    packed,
                    plan,
                    estimator,
                    crop=crop,
                    num_crops=num_crops,
                    device=device,
                    rng=rng,
                )
            )
        except InputError as error:
            _log.warning("skipped inputs of %s: %s", packed.name, error)
    if clips:
        save_clips(path, join_clips(clips))

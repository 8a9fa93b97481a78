"""Where training clips come from: real photos, procedural worlds, splats of dense captures.

Every source yields batches of plans about packed scenes, so that all clips are made by the same
front half and differ only in what the photos show.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.distill.clip import write_chunk
from fvgen_recon.distill.pack import PackedScene, encode_photo
from fvgen_recon.distill.pair import (
    ClipPlan,
    Pair,
    PairLimits,
    PairPool,
    PathPlan,
    draw_inputs,
    pool_pairs,
)
from fvgen_recon.distill.splat import SplatConfig, SplatSource
from fvgen_recon.errors import InputError
from fvgen_recon.pointcloud.base import PointCloudEstimator
from fvgen_recon.render.world import Capture, TraceConfig, procedural_capture

Batch = tuple[Sequence[PackedScene], list[ClipPlan]]
"""Scenes and plans that speak of them."""


@runtime_checkable
class ClipSource(Protocol):
    """Yields plans of training clips."""

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Return a chunk of plans; `index` counts a worker's chunks."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceShares:
    """Shares of the training clips by source, in proportion."""

    real: float = 0.55
    """Photos of real scenes: repeated along a path where there are few."""
    procedural: float = 0.3
    """Worlds of `render.world`: a true photo at every frame."""
    splat: float = 0.15
    """Renders of splats fitted to dense captures along smooth paths between two photos."""

    def __post_init__(self) -> None:
        """Check that something is wanted."""
        values = (self.real, self.procedural, self.splat)
        if min(values) < 0 or sum(values) <= 0:
            raise InputError(
                f"Shares of clip sources that are not negative and not all 0 were expected: "
                f"{values} came."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RealSource:
    """Photos of real scenes."""

    pool: PairPool
    num_frames: int
    chunk: int = 8
    """Plans of a batch."""

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Draw plans over all scenes."""
        return self.pool.scenes, self.pool.draw(self.chunk, self.num_frames, rng)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProceduralSource:
    """Procedural worlds, each photographed along one walk of twice a clip's length.

    A walk serves two clips: one that runs over all of it at every second frame, and one half of it
    frame by frame, with half the gap.
    """

    photos: Float[Tensor, "N 3 S S"]
    """Square crops of photos for some of the surfaces."""
    num_frames: int
    long_side: int = 352
    """Of the photos, in pixels."""
    texture_size: int = 256
    num_extras: int = 3
    """Views beside the walk."""
    chunk: int = 8
    """Plans of a batch: two a world."""
    device: str = "cpu"
    config: TraceConfig | None = None

    def batch(self, index: int, rng: torch.Generator) -> Batch:
        """Photograph half as many worlds as plans are wanted."""
        scenes, plans = [], []
        for _ in range(max(1, self.chunk // 2)):
            capture = self._capture(rng)
            scene = pack_capture(capture, f"procedural-{capture.kind}")
            scenes.append(scene)
            plans += self._plans(len(scenes) - 1, capture, rng)
        return scenes, plans

    def _capture(self, rng: torch.Generator) -> Capture:
        wide = bool(torch.rand((), generator=rng) < 0.5)
        low, high = (30.0, 44.0) if wide else (8.0, 30.0)
        gap = low + (high - low) * float(torch.rand((), generator=rng))
        flat = bool(torch.rand((), generator=rng) < 0.6)
        height = 16 * round(self.long_side * (0.64 if flat else 0.75) / 16)
        return procedural_capture(
            int(torch.randint(1 << 40, (), generator=rng)),
            num_frames=2 * self.num_frames - 1,
            num_extras=self.num_extras,
            height=height,
            width=self.long_side,
            gap_deg=gap,
            photos=self.photos,
            texture_size=self.texture_size,
            device=self.device,
            config=self.config,
        )

    def _plans(self, scene: int, capture: Capture, rng: torch.Generator) -> list[ClipPlan]:
        whole = tuple(range(0, capture.num_frames, 2))
        start = (self.num_frames - 1) * int(torch.randint(2, (), generator=rng))
        half = tuple(range(start, start + self.num_frames))
        beside = tuple(range(capture.num_frames, len(capture.images)))
        ends = {0, self.num_frames - 1, 2 * self.num_frames - 2} - {half[0], half[-1]}
        return [
            walk_plan(scene, whole, capture.gap_deg, beside, rng),
            walk_plan(scene, half, capture.gap_deg / 2, (*beside, *ends), rng),
        ]


def walk_plan(
    scene: int,
    frames: tuple[int, ...],
    gap_deg: float,
    extras: tuple[int, ...],
    rng: torch.Generator,
) -> ClipPlan:
    """Return the plan of a clip with a photo at every frame.

    Args:
        scene: Index of the scene.
        frames: Photo of each frame.
        gap_deg: Angle between the ends.
        extras: Photos that may be inputs too.
        rng: Draws those that are.
    """
    count = len(frames)
    pair = Pair(
        first=frames[0],
        last=frames[-1],
        targets=frames[1:-1],
        places=tuple(i / (count - 1) for i in range(1, count - 1)),
        gap_deg=gap_deg,
        extras=extras,
    )
    path = PathPlan(pair=pair, ends=(0, 1), frames=frames)
    return ClipPlan(scene=scene, inputs=draw_inputs(pair, rng), paths=(path,))


def pack_capture(capture: Capture, name: str, quality: int = 95) -> PackedScene:
    """Compress a procedural capture as real photos are."""
    depth = [d[d > 0].median() if bool((d > 0).any()) else d.new_zeros(()) for d in capture.depth]
    return PackedScene(
        name=name,
        photo_names=tuple(f"{i:03d}.jpg" for i in range(len(capture.images))),
        jpegs=tuple(encode_photo(image, quality) for image in capture.images.cpu()),
        cameras=capture.cameras.to("cpu"),
        depth=torch.stack(depth).cpu(),
    )


def photo_crops(
    scenes: Sequence[PackedScene], count: int, size: int, rng: torch.Generator
) -> Float[Tensor, "N 3 S S"]:
    """Cut random squares out of the photos of scenes, as textures of procedural worlds."""
    crops = []
    for _ in range(count):
        packed = scenes[int(torch.randint(len(scenes), (), generator=rng))]
        index = int(torch.randint(len(packed), (), generator=rng))
        height, width = packed.cameras.height, packed.cameras.width
        image = packed.scene([index], height, width).images[0]
        side = int(min(height, width) * (0.4 + 0.6 * float(torch.rand((), generator=rng))))
        top = int(torch.randint(height - side + 1, (), generator=rng))
        left = int(torch.randint(width - side + 1, (), generator=rng))
        crop = image[None, :, top : top + side, left : left + side]
        crops.append(
            torch.nn.functional.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
        )
    return torch.stack(crops)


@dataclass(frozen=True, kw_only=True, slots=True)
class BankConfig:
    """What a bank of training clips shall hold."""

    shares: SourceShares
    num_plans: int
    """Sets of inputs in all."""
    num_frames: int
    crop: tuple[int, int]
    """Height and width of clips."""
    num_crops: int
    """Crops made from each path."""
    limits: PairLimits = field(default_factory=PairLimits)
    """When two photos make a pair."""
    splat: SplatConfig = field(default_factory=SplatConfig)
    """How splats are fitted."""
    texture_size: int = 256
    """Texels along the side of textures of procedural worlds."""
    long_side: int = 352
    """Longer side of photos of procedural worlds."""
    trace: TraceConfig | None = None
    """Effort and look of procedural photos."""
    chunk: int = 8
    """Plans whose clips share a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """One of several processes that fill a bank, and its share of the work."""

    index: int
    count: int
    device: torch.device
    seed: int


def write_mixed_bank(
    scenes: Sequence[PackedScene],
    folder: Path,
    estimator: PointCloudEstimator,
    config: BankConfig,
    worker: Worker,
) -> dict[str, int]:
    """Fill a worker's share of a bank from all sources; chunks that exist are kept.

    Real and procedural chunks alternate by their shares, so that a bank that is still growing is
    mixed as the finished one; each fitted splat adds its chunks between them. Procedural worlds
    among the scenes are taken as they are; where there are none, new ones are rendered.

    Args:
        scenes: Real scenes and packed procedural worlds.
        folder: Where the chunks go.
        estimator: The source of clouds.
        config: What the whole bank shall hold.
        worker: Whose share to make.

    Returns:
        The number of plans made from each source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {"real": 0, "procedural": 0, "splat": 0}
    shares = {name: getattr(config.shares, name) for name in made}
    goal = {
        n: s / sum(shares.values()) * config.num_plans / worker.count for n, s in shares.items()
    }
    sources = _sources(scenes, config, worker, goal["splat"])
    count = 0
    while any(made[n] < goal[n] for n in made):
        name = min((n for n in made if made[n] < goal[n]), key=lambda n: made[n] / goal[n])
        path = folder / f"{worker.seed}-{worker.index}-{count:04d}-{name}.safetensors"
        rng = _generator(worker, count)
        if path.exists():
            made[name] += config.chunk
            count += 1
            continue
        scenes, plans = sources[name].batch(count, rng)
        if not plans:  # No capture is left to fit: the other sources fill the room.
            goal["real" if shares["real"] > 0 else "procedural"] += goal[name] - made[name]
            goal[name] = made[name]
            continue
        write_chunk(
            path,
            scenes,
            plans,
            estimator,
            crop=config.crop,
            num_crops=config.num_crops,
            device=worker.device,
            rng=rng,
        )
        made[name] += len(plans)
        count += 1
    return made


def _generator(worker: Worker, index: int) -> torch.Generator:
    return torch.Generator().manual_seed((worker.seed * 1009 + worker.index) * 100_003 + index)


PROCEDURAL = "procedural-"
"""What names of packed procedural worlds begin with."""


def pack_world(
    seed: int,
    photos: Float[Tensor, "N 3 S S"],
    *,
    long_side: int = 352,
    quality: int = 88,
    num_frames: int = 32,
    texture_size: int = 256,
    config: TraceConfig | None = None,
    device: str = "cpu",
) -> PackedScene:
    """Photograph a procedural world along a wide walk, to be carried like a real scene.

    Where many processes share a GPU, rendering worlds there is slow; packed ones cost nothing.

    Args:
        seed: Decides everything.
        photos: Square crops of photos for some of the surfaces.
        long_side: Of the photos, in pixels.
        quality: JPEG quality.
        num_frames: Photos along the walk; four more lie beside it.
        texture_size: Texels along the side of textures.
        config: Effort and look.
        device: Where to compute.
    """
    rng = torch.Generator().manual_seed(seed)
    capture = procedural_capture(
        seed,
        num_frames=num_frames,
        num_extras=4,
        height=16 * round(long_side * (0.64 if seed % 2 else 0.75) / 16),
        width=long_side,
        gap_deg=26.0 + 18.0 * float(torch.rand((), generator=rng)),
        photos=photos,
        texture_size=texture_size,
        device=device,
        config=config,
    )
    return pack_capture(capture, f"{PROCEDURAL}{capture.kind}-{seed}", quality)


def split_pool(
    scenes: Sequence[PackedScene], limits: PairLimits, num_frames: int
) -> tuple[PairPool, PairPool]:
    """Find the pairs of real scenes, and those of packed procedural worlds.

    Worlds have photos enough for a true one at every frame, so pairs with fewer are left out.
    """
    real = tuple(s for s in scenes if not s.name.startswith(PROCEDURAL))
    worlds = tuple(s for s in scenes if s.name.startswith(PROCEDURAL))
    dense = replace(limits, min_targets=num_frames - 2)
    return pool_pairs(real, limits), pool_pairs(worlds, dense)


def _sources(
    scenes: Sequence[PackedScene], config: BankConfig, worker: Worker, num_splat_plans: float
) -> dict[str, ClipSource]:
    real, worlds = split_pool(scenes, config.limits, config.num_frames)
    procedural: ClipSource = RealSource(
        pool=worlds, num_frames=config.num_frames, chunk=config.chunk
    )
    if not worlds.scenes:
        procedural = ProceduralSource(
            photos=photo_crops(real.scenes, 96, config.texture_size, _generator(worker, 99_999)),
            num_frames=config.num_frames,
            texture_size=config.texture_size,
            long_side=config.long_side,
            device=str(worker.device),
            config=config.trace,
            chunk=config.chunk,
        )
    return {
        "real": RealSource(pool=real, num_frames=config.num_frames, chunk=config.chunk),
        "procedural": procedural,
        "splat": SplatSource(
            pool=real.share(worker.index, worker.count),
            config=config.splat,
            num_frames=config.num_frames,
            num_plans=num_splat_plans,
            device=worker.device,
            chunk=config.chunk,
        ),
    }

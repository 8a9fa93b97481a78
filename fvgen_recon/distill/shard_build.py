"""From the plan of a data set to its shards: clouds, renders, files; resumable and idempotent."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import fvgen_recon
from fvgen_recon.diffusion.backbone import Codec
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.distill.model import BACKBONES
from fvgen_recon.distill.shard_clip import ClipOrigin, Member, ShardClip, encode_clip
from fvgen_recon.distill.shard_file import (
    ShardRecord,
    SkippedClip,
    finished_shards,
    tar_path,
    write_record,
    write_tar,
)
from fvgen_recon.distill.shard_plan import (
    PLAN,
    ClipWindow,
    ShardPlan,
    ShardSettings,
    open_capture,
    read_plan,
    write_plan,
)
from fvgen_recon.errors import InputError
from fvgen_recon.io.scenes import load_scene
from fvgen_recon.pointcloud import make_estimator
from fvgen_recon.render.guidance import guidance_config, render_guidance
from fvgen_recon.types import Anchor, Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One machine's part of the shards: every `count`-th one from `index` on."""

    index: int = 0
    """Which part, from 0."""
    count: int = 1
    """How many parts."""

    def __post_init__(self) -> None:
        """Check that the part exists."""
        if not 0 <= self.index < self.count:
            raise InputError(
                f"The share {self.index}/{self.count} does not exist: with {self.count} machines "
                f"they are 0/{self.count} to {self.count - 1}/{self.count}."
            )


def read_share(text: str) -> Share:
    """Read a share such as `0/4`.

    Raises:
        InputError: It is not two whole numbers, or there is no such part.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise InputError(f"A share such as 0/4 (the first of four) was expected: {text} came.")
    return Share(index=int(index), count=int(count))


def settle_plan(folder: Path, plan: ShardPlan) -> ShardPlan:
    """Write a plan, or check that the folder's own is the same.

    Raises:
        InputError: The folder was begun with another plan, or the codec of a new one is not there.
    """
    if not (folder / PLAN).is_file():
        # A slip would bind the folder for good.
        _check_codec(plan.settings)
        write_plan(folder, plan)
    kept = read_plan(folder)
    if kept.settings != plan.settings:
        raise InputError(
            f"{folder} was begun with other settings (see {PLAN}): give those, or another folder."
        )
    if kept.fingerprint != plan.fingerprint:
        raise InputError(
            f"{folder} was begun with other scenes or exclusions (see {PLAN}): give those, or "
            "another folder."
        )
    return kept


def pending_shards(folder: Path, plan: ShardPlan, share: Share) -> list[int]:
    """Return the shards of a share that are still to be made."""
    done = set(finished_shards(folder, plan))
    return [n for n in range(share.index, len(plan.shards), share.count) if n not in done]


def _check_codec(settings: ShardSettings) -> None:
    """Refuse a codec that there is not."""
    if settings.codec is None or settings.codec_folder is None:
        return
    if settings.codec not in BACKBONES:
        raise InputError(
            f"There is no codec `{settings.codec}`: choose one of {', '.join(BACKBONES)}."
        )
    if not Path(settings.codec_folder).is_dir():
        raise InputError(f"The codec's folder {settings.codec_folder} is not there.")


def load_codec(settings: ShardSettings, device: torch.device) -> Codec | None:
    """Load the codec that the settings name, if they name one.

    Raises:
        InputError: There is no such kind of model, or no such folder.
    """
    if settings.codec is None or settings.codec_folder is None:
        return None
    _check_codec(settings)
    return BACKBONES[settings.codec].load(Path(settings.codec_folder), device).codec


def build_clip(
    root: Path,
    window: ClipWindow,
    settings: ShardSettings,
    *,
    codec: Codec | None = None,
    device: torch.device | str = "cpu",
) -> ShardClip:
    """Make one clip: photos, a cloud from a few of them, renders along the real path.

    Raises:
        InputError: A photo cannot be used, or no cloud comes of the views.
    """
    capture = open_capture(root, window.scene, settings)
    size = (settings.height, settings.width)
    clip = load_scene(capture, window.frames, height=size[0], width=size[1])
    views = list(settings.views)
    inputs = load_scene(
        capture, tuple(window.frames[v] for v in views), height=size[0], width=size[1]
    ).to(device)
    cloud = make_estimator(settings.estimator).estimate(inputs)
    last = settings.num_frames - 1
    anchors = (Anchor(frame=0, view=0), Anchor(frame=last, view=len(views) - 1))
    guidance = render_guidance(
        inputs,
        cloud,
        Trajectory(cameras=clip.cameras.to(device), anchors=anchors),
        min_confidence=settings.min_confidence,
        config=guidance_config(is_raw=settings.is_raw, height=settings.height),
    )
    origin = ClipOrigin(
        scene=window.scene,
        photos=clip.names,
        views=settings.views,
        estimator=settings.estimator,
        is_raw=settings.is_raw,
        version=fvgen_recon.__version__,
    )
    made = ShardClip(
        key=window.key,
        origin=origin,
        frames=clip.images,
        cameras=clip.cameras,
        guidance=guidance.to("cpu"),
    )
    if codec is None:
        return made
    return replace(made, latents=encode_latents(codec, made, key_seed(window.key), device))


def key_seed(key: str) -> int:
    """Return a seed that only depends on a clip's key."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:12], 16)


@torch.no_grad()
def encode_latents(
    codec: Codec, clip: ShardClip, seed: int, device: torch.device | str
) -> TrainingBatch:
    """Encode a clip's photos and renders; the seed draws the codec's posterior."""
    rng = torch.Generator(device).manual_seed(seed)
    x0 = codec.encode(clip.frames[None].to(device), rng)
    return TrainingBatch(x0=x0, condition=codec.condition([clip.guidance.to(device)], rng))


def build_shard(
    root: Path,
    folder: Path,
    plan: ShardPlan,
    number: int,
    *,
    codec: Codec | None = None,
    device: torch.device | str = "cpu",
) -> ShardRecord:
    """Make one shard; tar and record appear only when complete.

    Clips that cannot be made are recorded with the reason.

    Raises:
        InputError: A scene of the plan is not there any more.
    """
    start = time.monotonic()
    skipped: list[SkippedClip] = []

    def made() -> Iterator[tuple[str, tuple[Member, ...]]]:
        for window in plan.shards[number]:
            try:
                clip = build_clip(root, window, plan.settings, codec=codec, device=device)
            except InputError as error:
                skipped.append(SkippedClip(key=window.key, reason=str(error)))
                continue
            yield clip.key, encode_clip(clip, quality=plan.settings.quality)

    for window in plan.shards[number]:
        if not (root / window.scene).is_dir():
            # Not one bad clip: the data have moved, and every clip would be skipped.
            raise InputError(f"The scene {root / window.scene} is in the plan and is not there.")
    places, digest, size = write_tar(tar_path(folder, number), made())
    record = ShardRecord(
        number=number,
        plan=plan.fingerprint,
        size=size,
        sha256=digest,
        clips=places,
        skipped=tuple(skipped),
        seconds=round(time.monotonic() - start, 2),
    )
    write_record(folder, record)
    return record


def build_shards(
    root: Path,
    folder: Path,
    plan: ShardPlan,
    *,
    share: Share | None = None,
    device: torch.device | str = "cpu",
    report: Callable[[ShardRecord], None],
) -> int:
    """Make the shards of a share that are not there yet, in this process.

    Args:
        root: The data folder.
        folder: Where the shards go; holds the plan.
        plan: What to make.
        share: This machine's part; everything by default.
        device: Where to estimate and render.
        report: Called after each shard.

    Returns:
        How many shards were made; 0 where nothing was to be done.
    """
    numbers = pending_shards(folder, plan, share or Share())
    codec = load_codec(plan.settings, torch.device(device)) if numbers else None
    for number in numbers:
        report(build_shard(root, folder, plan, number, codec=codec, device=device))
    return len(numbers)

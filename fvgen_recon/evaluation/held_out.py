"""Generators at the poses of held-out photos: clips that pass through them, and their scores."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.evaluation.comparison import Judge, Row, Truth, run_method
from fvgen_recon.evaluation.moment import Moments, add_moments, measure_moments
from fvgen_recon.evaluation.path import gap_angle, plan_held_out
from fvgen_recon.io.scenes import Capture, load_scene
from fvgen_recon.pointcloud.base import PointCloudEstimator
from fvgen_recon.pointcloud.mvs.semantic import EfficientNetLite0
from fvgen_recon.render.guidance import guidance_config, render_guidance
from fvgen_recon.types import Cameras, PointCloud, Scene

TRUTH = "truth"
"""Name of the photos among the methods."""

Watch = Callable[[str, Truth, Tensor], None]
"""Is shown a generator's name, a clip and the generator's frames [N 3 H W] that have a photo."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutClips:
    """The clips of one scene with what they should show."""

    inputs: tuple[str, ...]
    """Names of the input photos."""
    held_out: tuple[str, ...]
    """Names of the held-out photos."""
    truths: tuple[Truth, ...]
    """One for each clip."""
    seconds_points: float
    """Time of the point cloud."""
    seconds_render: float
    """Mean time of the guidance of a clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What generators made of the clips of one scene."""

    rows: tuple[Row, ...]
    """One a generator and clip."""
    moments: Mapping[str, Moments]
    """Moments of the features of all frames with a photo, of each generator and of the photos;
    empty without a feature network."""
    lines: tuple[tuple[Float[Tensor, "3 H W"], ...], ...]
    """For each clip the first input photo, the middle frame of every generator and the photo."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSettings:
    """How clips are made."""

    height: int
    """Height of the frames in pixels."""
    width: int
    """Width likewise."""
    num_frames: int = 16
    """Length of a clip."""
    max_clips: int | None = None
    """Most clips of a scene, those with the most held-out views first; all by default."""
    has_bare: bool = False
    """Whether there are bare renders too, as a generator wants them (`VideoGenerator.is_raw`)."""
    device: str = "cpu"
    """Where to work."""


def build_clips(
    name: str,
    capture: Capture,
    inputs: tuple[int, ...],
    held_out: tuple[int, ...],
    estimator: PointCloudEstimator,
    settings: ClipSettings,
) -> HeldOutClips:
    """Plan clips through held-out views and render their guidance from the inputs alone.

    Args:
        name: Name of the scene in the results.
        capture: The scene.
        inputs: Frames whose photos may be used.
        held_out: Frames that should come out; their photos are opened to compare with.
        estimator: Source of the point cloud.
        settings: Sizes and lengths.

    Raises:
        InputError: The views are too few or do not overlap.
    """
    height, width, device = settings.height, settings.width, settings.device
    scene = load_scene(capture, inputs, height=height, width=width).to(device)
    photos = load_scene(capture, held_out, height=height, width=width).to(device)
    start = time.perf_counter()
    cloud = estimator.estimate(scene)
    _wait(device)
    seconds_points = time.perf_counter() - start
    both = Cameras(
        c2w=torch.cat([scene.cameras.c2w, photos.cameras.c2w]).cpu(),
        K=torch.cat([scene.cameras.K, photos.cameras.K]).cpu(),
        height=height,
        width=width,
    )
    first, last = tuple(range(len(scene))), tuple(range(len(scene), len(scene) + len(photos)))
    depth = _typical_depth(cloud, scene)
    paths = plan_held_out(both, first, last, settings.num_frames)[: settings.max_clips]
    truths, seconds_render = [], 0.0
    for index, path in enumerate(paths):
        trajectory = replace(path.trajectory, cameras=path.trajectory.cameras.to(device))
        start = time.perf_counter()
        guidance = render_guidance(scene, cloud, trajectory)
        _wait(device)
        seconds_render += time.perf_counter() - start
        bare = None
        if settings.has_bare:
            config = guidance_config(is_raw=True, height=height)
            bare = render_guidance(scene, cloud, trajectory, config=config)
        truths.append(
            Truth(
                guidance=guidance,
                bare=bare,
                cameras=trajectory.cameras,
                frames=path.frames,
                photos=photos.images[[i - len(scene) for i in path.photos]],
                scene=name,
                clip=index,
                gap_deg=gap_angle(trajectory, depth),
            )
        )
    return HeldOutClips(
        inputs=scene.names,
        held_out=photos.names,
        truths=tuple(truths),
        seconds_points=seconds_points,
        seconds_render=seconds_render / max(1, len(truths)),
    )


def measure_clips(
    clips: HeldOutClips,
    generators: Mapping[str, VideoGenerator],
    judge: Judge,
    eyes: EfficientNetLite0 | None,
    *,
    seed: int = 0,
    watch: Watch | None = None,
) -> Outcome:
    """Run every generator on every clip.

    Args:
        clips: What to generate.
        generators: By name.
        judge: Perceptual distance of frames to photos.
        eyes: Network for distances between sets of images; none leaves them out.
        seed: Of every generator.
        watch: Is shown all frames that have a photo, to measure more of them.
    """
    rows: list[Row] = []
    lines: list[tuple[Tensor, ...]] = []
    moments: dict[str, list[Moments]] = {}
    for truth in clips.truths:
        made: dict[str, Tensor] = {}
        for name, generator in generators.items():
            row, frames = run_method(name, generator, truth, judge, seed=seed)
            rows.append(row)
            made[name] = frames[list(truth.frames)].clamp(0, 1)
            if watch is not None:
                watch(name, truth, made[name])
        made[TRUTH] = truth.photos
        if eyes is not None:
            for name, frames in made.items():
                part = measure_moments(eyes.local_features(frames))
                moments.setdefault(name, []).append(part)
        middle = len(truth.frames) // 2
        row = (truth.guidance.reference, *(frames[middle] for frames in made.values()))
        lines.append(tuple(picture.cpu() for picture in row))
    return Outcome(
        rows=tuple(rows),
        moments={name: add_moments(parts) for name, parts in moments.items()},
        lines=tuple(lines),
    )


def _typical_depth(cloud: PointCloud, scene: Scene) -> float:
    """Return the median z-depth of trusted points in the first view; 1 where there are none."""
    trusted = cloud.confidence >= 0.5
    camera = scene.cameras[0]
    depth = (cloud.xyz[trusted] - camera.position) @ camera.direction
    return float(depth[depth > 0].median()) if bool((depth > 0).any()) else 1.0


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)

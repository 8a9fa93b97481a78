"""The front half: posed photos in, generated training views out."""

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.densify.bank import Bank, Origin, hash_guidance
from fvgen_recon.densify.confidence import ConfidenceConfig, frame_confidence
from fvgen_recon.densify.evidence import gather_evidence
from fvgen_recon.densify.generators import GeneratorConfig, load_generator
from fvgen_recon.densify.size import fit_scene, working_size
from fvgen_recon.densify.trust import find_trust
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.errors import InputError
from fvgen_recon.pointcloud import make_estimator
from fvgen_recon.pointcloud.overlap import describe_overlap
from fvgen_recon.render.guidance import guidance_config, render_guidance, support_fraction
from fvgen_recon.trajectory import make_planner
from fvgen_recon.types import Cameras, Clip, Guidance, PointCloud, Scene, Trajectory

_Result = TypeVar("_Result")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplatRender:
    """Renders of the current Gaussians along a trajectory."""

    frames: Float[Tensor, "T 3 H W"]
    """Colours in [0, 1] on black."""
    alpha: Float[Tensor, "T 1 H W"]
    """Accumulated opacity in [0, 1]."""
    depth: Float[Tensor, "T 1 H W"]
    """Expected z-depth in world units."""


SplatRenderer = Callable[[Cameras], SplatRender]
"""Renders the current Gaussians; given in later rounds so that they condition the generator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DensifyConfig:
    """Everything that the front half can be told."""

    estimator: str = "plane-sweep"
    """Point-cloud source: plane-sweep, mvs, stereo (mvs, and the sweep where it is
    surer), dataset, dust3r or random."""
    planner: str = "even"
    """Camera paths: even, interpolate, support or file."""
    camera_path: Path | None = None
    """For the planner `file`: a camera path that nerfstudio's viewer exported, in the world of the
    scene that is densified."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """What fills the views."""
    confidence: ConfidenceConfig = field(default_factory=ConfidenceConfig)
    """How generated pixels are weighed."""
    long_side: int = 512
    """Longer image side that the front half works at, in pixels."""
    min_confidence: float = 0.5
    """Points below this confidence only serve the dense single-view layers."""
    num_samples: int = 1
    """Samples of each clip; more than one measures how far they agree."""
    few_steps_below: float | None = None
    """Share of missing pixels below which a clip is made in 2 steps, where the generator would take
    more; none leaves all clips their steps."""
    splat_alpha: float = 0.9
    """In later rounds, opacity above which a render of the Gaussians is trusted."""
    seed: int = 0
    """Seed of the generator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Densified:
    """The outcome of one round."""

    scene: Scene
    """The input views at the working size."""
    points: PointCloud
    """The point cloud that the renders were made of."""
    clips: tuple[Clip, ...]
    """Generated clips, one for each trajectory."""
    seconds: dict[str, float]
    """Wall-clock seconds of each part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a round's renders were made of."""

    scene: Scene
    points: PointCloud


class Densifier:
    """Runs estimate -> plan -> render -> generate -> score -> bank."""

    def __init__(self, config: DensifyConfig) -> None:
        make_estimator(config.estimator)  # Before any work.
        if config.num_samples < 1:
            raise InputError(
                f"A clip needs at least one sample: num_samples {config.num_samples} came."
            )
        self.config = config
        self.planner = make_planner(config.planner, config.camera_path)

    def run(
        self,
        scene: Scene,
        *,
        bank: Bank | None = None,
        round_index: int = 0,
        splat: SplatRenderer | None = None,
        generator: VideoGenerator | None = None,
        points: PointCloud | None = None,
    ) -> Densified:
        """Generate the clips of one round.

        Args:
            scene: The chosen input views, at any size.
            bank: Where frames are kept; clips that it already holds are not generated again.
            round_index: Number of this round, from 0.
            splat: Renders the current Gaussians; where they are opaque they replace the points.
            generator: An already loaded generator; by default the config's own is loaded.
            points: The point cloud of these views where it is known already; the photos, once they
                are small, follow it to its device.

        Raises:
            InputError: The views are too few, do not overlap or do not suit the generator.
        """
        clock = _Clock()
        generator = generator or load_generator(self.config.generator)
        camera = scene.cameras
        height, width = working_size(
            camera.height, camera.width, self.config.long_side, generator.size_multiple
        )
        scene = fit_scene(scene, height, width)
        if points is not None:
            scene = scene.to(points.xyz.device)  # Large photos need not fit onto a GPU.
        else:
            points = clock.time("points", lambda: self._estimate_points(scene))
        trusted = points[points.confidence >= self.config.min_confidence]
        plan = clock.time(
            "plan",
            lambda: self.planner.plan(
                scene, generator.num_frames, lambda camera: support_fraction(trusted, camera)
            ),
        )
        self._tell_of_other_weights(generator)
        if bank is not None:  # Not before: a refused plan leaves no folder.
            bank.start_round(scene.cameras)
        clips, origins = [], []
        for index, trajectory in enumerate(plan):
            guidance = clock.time(
                "render", lambda t=trajectory: self._render(generator, scene, points, t, splat)
            )
            chosen = fit_steps(generator, guidance, self.config.few_steps_below)
            origin = self._origin(chosen, guidance, round_index, index)
            clip = None if bank is None else bank.read_clip(origin, guidance, trajectory.cameras)
            if clip is None:
                clip = clock.time(
                    "generate",
                    lambda c=chosen, g=guidance, t=trajectory, o=origin: self._generate(
                        c, Inputs(scene=scene, points=points), g, t, o
                    ),
                )
                if bank is not None:
                    bank.add_clip(clip, origin)
            clips.append(clip)
            origins.append(origin)
            _LOG.info("round %d: clip %d of %d", round_index + 1, index + 1, len(plan))
        if bank is not None:
            bank.finish_round(round_index, tuple(origins))
        return Densified(scene=scene, points=points, clips=tuple(clips), seconds=clock.seconds)

    def _tell_of_other_weights(self, generator: VideoGenerator) -> None:
        """Say so where the confidence was calibrated on frames of other weights."""
        config = self.config
        if not config.confidence.calibrated:
            return
        fitted = find_trust(generator.name, config.num_samples, config.confidence.model)
        if fitted.weights_hash not in (None, generator.weights_hash):
            _LOG.warning(
                "The calibrated confidence of `%s` was fitted to other weights (%.12s) than those "
                "in use (%.12s), so its claims may be off: fit it anew with "
                "scripts/calibrate_confidence.py, or leave it off.",
                generator.name,
                fitted.weights_hash,
                generator.weights_hash,
            )

    def _estimate_points(self, scene: Scene) -> PointCloud:
        """Return the point cloud of the photos, and say which of them the others hardly show."""
        points = make_estimator(self.config.estimator).estimate(scene)
        if self.config.estimator != "random":  # It seeks nothing in the photos.
            doubt = describe_overlap([points], scene.names)
            if doubt:
                _LOG.warning(doubt)
        return points

    def _render(
        self,
        generator: VideoGenerator,
        scene: Scene,
        points: PointCloud,
        trajectory: Trajectory,
        splat: SplatRenderer | None,
    ) -> Guidance:
        guidance = render_guidance(
            scene,
            points,
            trajectory,
            min_confidence=self.config.min_confidence,
            config=guidance_config(is_raw=generator.is_raw, height=scene.cameras.height),
        )
        if splat is None:
            return guidance
        return blend_splat(guidance, splat(trajectory.cameras), self.config.splat_alpha)

    def _origin(
        self, generator: VideoGenerator, guidance: Guidance, round_index: int, trajectory: int
    ) -> Origin:
        return Origin(
            generator=generator.name,
            weights_hash=generator.weights_hash,
            num_steps=generator.num_steps,
            seed=self.config.seed,
            round=round_index,
            trajectory=trajectory,
            guidance_hash=hash_guidance(guidance),
            scoring_hash=self._scoring_hash(generator),
        )

    def _scoring_hash(self, generator: VideoGenerator) -> str:
        """Return a short hash of everything that `_score` depends on beside the guidance."""
        config, num_samples = self.config.confidence, self.config.num_samples
        model = find_trust(generator.name, num_samples, config.model) if config.calibrated else None
        settings = (replace(config, model=None), num_samples, model)
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

    def _generate(
        self,
        generator: VideoGenerator,
        inputs: Inputs,
        guidance: Guidance,
        trajectory: Trajectory,
        origin: Origin,
    ) -> Clip:
        seeds = [origin.seed + 1_000_003 * k for k in range(self.config.num_samples)]
        samples = torch.stack([generator.generate(guidance, seed=seed) for seed in seeds])
        return Clip(
            frames=samples[0],
            cameras=trajectory.cameras,
            guidance=guidance,
            confidence=self._score(generator, inputs, samples, guidance, trajectory),
        )

    def _score(
        self,
        generator: VideoGenerator,
        inputs: Inputs,
        samples: Float[Tensor, "S T 3 H W"],
        guidance: Guidance,
        trajectory: Trajectory,
    ) -> Float[Tensor, "T 1 H W"]:
        """Weigh pixels by the calibrated model or by levels."""
        config = self.config.confidence
        invents = generator.num_steps > 0
        if not config.calibrated:
            if not invents:  # Its holes are unknown.
                config = replace(config, seen=0.0, invented=0.0)
            return frame_confidence(samples, guidance, config)
        model = find_trust(generator.name, len(samples), config.model)
        evidence = gather_evidence(
            samples,
            guidance,
            trajectory.cameras,
            inputs.scene,
            inputs.points,
            tolerance=model.tolerance,
        )
        confidence = model.confidence(evidence)[:, None]
        if not invents:
            confidence = confidence * guidance.mask
        return torch.where(guidance.is_anchor[:, None, None, None], 1.0, confidence)


def fit_steps(
    generator: VideoGenerator, guidance: Guidance, few_below: float | None
) -> VideoGenerator:
    """Return the generator with 2 steps where little of a clip is missing.

    Generators whose steps cannot be set, or that take no more than 2, stay as they are.

    Args:
        generator: The generator.
        guidance: What it would be given.
        few_below: Share of missing pixels, between the anchors, below which 2 steps are taken.
    """
    if few_below is None or generator.num_steps <= 2 or not is_dataclass(generator):
        return generator
    missing = 1 - float(guidance.mask[~guidance.is_anchor].float().mean())
    return replace(generator, num_steps=2) if missing < few_below else generator


def blend_splat(guidance: Guidance, splat: SplatRender, min_alpha: float) -> Guidance:
    """Let renders of the Gaussians stand in for the points where they are opaque.

    Anchor frames keep their photos. Hints stay those of the points: 0 where only Gaussians are.
    """
    is_anchor = guidance.is_anchor[:, None, None, None]
    opaque = (splat.alpha >= min_alpha) & ~is_anchor
    return replace(
        guidance,
        frames=torch.where(opaque, splat.frames.clamp(0, 1), guidance.frames),
        mask=guidance.mask | opaque,
        depth=torch.where(opaque, splat.depth, guidance.depth),
    )


class _Clock:
    """Adds up wall-clock seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, part: str, work: Callable[[], _Result]) -> _Result:
        start = time.perf_counter()
        result = work()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
        return result

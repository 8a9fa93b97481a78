"""One round of generation. Imports the front half, so it is only imported when a round runs."""

import torch
from nerfstudio.utils.rich_utils import CONSOLE

from fvgen_nerfstudio.gaussian import thin_cloud
from fvgen_nerfstudio.model import FvgenModel
from fvgen_nerfstudio.progress import shown_progress
from fvgen_nerfstudio.rounds import DensifySettings, lift_unseen
from fvgen_recon.densify.bank import Bank
from fvgen_recon.densify.confidence import ConfidenceConfig
from fvgen_recon.densify.densifier import Densified, Densifier, DensifyConfig, SplatRender
from fvgen_recon.densify.generators import DEFAULT_GENERATOR, GENERATORS, GeneratorConfig
from fvgen_recon.densify.trust import find_trust
from fvgen_recon.errors import InputError
from fvgen_recon.types import Cameras, PointCloud, Scene

_MAX_ADDED = 20_000


def make_config(settings: DensifySettings, estimator: str, device: str) -> DensifyConfig:
    """Return the front half's configuration for the plugin's settings."""
    name = DEFAULT_GENERATOR if settings.generator == "default" else settings.generator
    generator = GeneratorConfig(
        name=name,
        weights=settings.weights,
        num_steps=settings.num_steps,
        num_frames=settings.num_frames,
        device=device,
    )
    return DensifyConfig(
        estimator=estimator,
        planner=settings.planner,
        camera_path=settings.camera_path,
        generator=generator,
        long_side=settings.long_side,
        num_samples=settings.num_samples,
        few_steps_below=settings.few_steps_below,
        confidence=ConfidenceConfig(calibrated=settings.calibrated),
        seed=settings.seed,
    )


def check_config(config: DensifyConfig) -> None:
    """Raise an `InputError` where the front half cannot run, before anything is trained."""
    Densifier(config)
    name, weights = config.generator.name, config.generator.weights
    if name not in GENERATORS:
        raise InputError(
            f"There is no generator `{name}`: choose one of {', '.join(GENERATORS)} or none."
        )
    num_frames = config.generator.num_frames
    if num_frames is not None and num_frames < 2:
        raise InputError(f"A clip needs at least two frames: num_frames {num_frames} came.")
    if config.long_side < 1:
        raise InputError(f"Frames need at least one pixel: long_side {config.long_side} came.")
    if config.confidence.calibrated:
        find_trust(name, config.num_samples, config.confidence.model)
    if weights is not None and not weights.exists():
        raise InputError(f"There are no weights at {weights}: give an existing folder.")


def run_round(
    config: DensifyConfig,
    scene: Scene,
    points: PointCloud,
    bank: Bank,
    index: int,
    model: FvgenModel,
) -> Densified:
    """Generate one round into the bank; the generator is gone when this returns.

    From the second round on, renders of the current Gaussians condition the generator.

    Args:
        config: The front half's configuration.
        scene: The input views in the splat's frame.
        points: Their point cloud.
        bank: Where the frames are kept.
        index: Number of the round, from 0.
        model: The splat.
    """
    device = model.device

    @torch.no_grad()
    def render(cameras: Cameras) -> SplatRender:
        frames, alpha, depth = model.render_black(cameras)
        return SplatRender(frames=frames, alpha=alpha, depth=depth)

    with shown_progress("fvgen_recon.densify"):
        outcome = Densifier(config).run(
            scene,
            points=points.to(device),
            bank=bank,
            round_index=index,
            splat=render if index > 0 else None,
        )
    spent = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in outcome.seconds.items())
    CONSOLE.log(f"{len(bank)} frames in the bank at {bank.folder} ({spent}).")
    return outcome


def add_gaussians(outcome: Densified, model: FvgenModel) -> int:
    """Add Gaussians where the clips see trusted points and the splat shows nothing.

    Returns:
        How many were added.
    """
    added = 0
    share = _MAX_ADDED // max(1, len(outcome.clips))
    for clip in outcome.clips:
        _, alpha, _ = model.render_black(clip.cameras)
        added += model.add_points(thin_cloud(lift_unseen(clip, alpha), share).to(model.device))
    return added

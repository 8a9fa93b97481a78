"""The methods: splatfacto's recipe with this project's sizes, views and pipeline."""

from typing import Any, Literal

from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.plugins.types import MethodSpecification

from fvgen_nerfstudio.checkpoint import allow_numpy_scalars
from fvgen_nerfstudio.datamanager import FvgenDatamanagerConfig
from fvgen_nerfstudio.dataparser import FvgenDataParserConfig
from fvgen_nerfstudio.failure import tell_uncaught
from fvgen_nerfstudio.model import FvgenModelConfig
from fvgen_nerfstudio.optimizer import FusedAdamConfig
from fvgen_nerfstudio.pipeline import FvgenPipelineConfig
from fvgen_nerfstudio.rounds import DensifySettings
from fvgen_nerfstudio.trainer import FvgenTrainerConfig
from fvgen_recon.recipes.splat import SplatRecipe, cpu_splat, gpu_splat


def _optimizers(num_steps: int) -> dict[str, Any]:
    """Return splatfacto's learning rates; decays end with the run."""

    def adam(lr: float) -> FusedAdamConfig:
        return FusedAdamConfig(lr=lr, eps=1e-15)

    def decay(lr_final: float, *, warmup: bool = False) -> ExponentialDecaySchedulerConfig:
        return ExponentialDecaySchedulerConfig(
            lr_final=lr_final,
            max_steps=num_steps,
            warmup_steps=num_steps // 30 if warmup else 0,
            lr_pre_warmup=0.0,
        )

    return {
        "means": {"optimizer": adam(1.6e-4), "scheduler": decay(1.6e-6)},
        "features_dc": {"optimizer": adam(2.5e-3), "scheduler": None},
        "features_rest": {"optimizer": adam(2.5e-3 / 20), "scheduler": None},
        "opacities": {"optimizer": adam(0.05), "scheduler": None},
        "scales": {"optimizer": adam(0.005), "scheduler": None},
        "quats": {"optimizer": adam(0.001), "scheduler": None},
        "camera_opt": {"optimizer": adam(1e-4), "scheduler": decay(5e-7, warmup=True)},
        "bilateral_grid": {"optimizer": adam(2e-3), "scheduler": decay(1e-4, warmup=True)},
    }


def _pipeline(recipe: SplatRecipe) -> FvgenPipelineConfig:
    """Return the pipeline of a recipe."""
    return FvgenPipelineConfig(
        datamanager=FvgenDatamanagerConfig(
            dataparser=FvgenDataParserConfig(
                long_side=recipe.long_side,
                estimator=recipe.prior.estimator,
                ensemble=recipe.prior.ensemble,
                method_ensemble=recipe.prior.ensemble,
                ensemble_views=recipe.prior.ensemble_views,
                estimator_long_side=recipe.densify_long_side,
                num_points=recipe.num_points,
                min_confidence=recipe.prior.min_confidence,
            ),
            mixing_start=recipe.mixing.start,
            mixing_end=recipe.mixing.end,
            mixing_ramp=recipe.mixing.ramp,
            mixing_share=recipe.mixing.share,
            mixing_weight=recipe.mixing.weight,
        ),
        model=FvgenModelConfig(
            num_downscales=recipe.num_downscales,
            resolution_schedule=recipe.resolution_schedule,
            sh_degree=recipe.sh_degree,
            sh_degree_interval=recipe.sh_degree_interval,
            warmup_length=recipe.warmup_length,
            refine_every=recipe.refine_every,
            reset_alpha_every=recipe.reset_alpha_every,
            stop_split_at=recipe.stop_split_at,
            stop_screen_size_at=recipe.stop_screen_size_at,
            cull_alpha_thresh=recipe.cull_alpha_thresh,
            max_gaussians=recipe.max_gaussians,
            seed_size=recipe.prior.seed_size,
            seed_opacity=recipe.prior.seed_opacity,
            strategy=recipe.prior.strategy,
            unknown=recipe.prior.unknown,
            dropout=recipe.prior.dropout,
            depth_weight=recipe.prior.depth_weight,
            solid_weight=recipe.prior.solid_weight,
        ),
        densify=DensifySettings(long_side=recipe.densify_long_side),
    )


def _trainer(name: str, recipe: SplatRecipe, device: Literal["cpu", "cuda"]) -> FvgenTrainerConfig:
    """Return a complete training configuration.

    Nothing is evaluated during training unless a user asks for it, because evaluation opens
    held-out photos.
    """
    return FvgenTrainerConfig(
        method_name=name,
        machine=MachineConfig(device_type=device),
        pipeline=_pipeline(recipe),
        optimizers=_optimizers(recipe.num_steps),
        max_num_iterations=recipe.num_steps,
        schedule_steps=recipe.num_steps,
        steps_per_save=recipe.steps_per_save,
        steps_per_eval_batch=0,
        steps_per_eval_image=0,
        steps_per_eval_all_images=0,
        mixed_precision=False,
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer",
    )


def _prepare_tools() -> None:
    """Do what nerfstudio's tools need before they read anything: they all ask for the methods."""
    allow_numpy_scalars()
    tell_uncaught()


def fvgen_splat() -> MethodSpecification:
    """Return the method for a CUDA device; without one it trains on the CPU, slowly."""
    _prepare_tools()
    return MethodSpecification(
        config=_trainer("fvgen-splat", gpu_splat(), "cuda"),
        description="Gaussian splat from a handful of posed photos, with generated views between.",
    )


def fvgen_splat_cpu() -> MethodSpecification:
    """Return the method sized for a laptop without CUDA."""
    _prepare_tools()
    return MethodSpecification(
        config=_trainer("fvgen-splat-cpu", cpu_splat(), "cpu"),
        description="fvgen-splat at a small size, for machines without CUDA.",
    )


METHODS = {"fvgen-splat": fvgen_splat, "fvgen-splat-cpu": fvgen_splat_cpu}

"""The strategy that a splat's settings ask for."""

from fvgen_nerfstudio.mcmc import McmcStrategy
from fvgen_nerfstudio.settings import FvgenModelConfig
from fvgen_nerfstudio.strategy import SplatStrategy


def make_strategy(config: FvgenModelConfig, num_views: int) -> SplatStrategy | McmcStrategy:
    """Return what adds and removes Gaussians.

    Args:
        config: The splat's settings.
        num_views: Number of photos: after a reset of the opacities each is seen once before
            anything is removed.
    """
    if config.strategy == "mcmc":
        return McmcStrategy(
            refine_start_iter=config.warmup_length,
            refine_stop_iter=config.stop_split_at,
            refine_every=config.refine_every,
            max_gaussians=config.max_gaussians,
        )
    return SplatStrategy(
        prune_opa=config.cull_alpha_thresh,
        grow_grad2d=config.densify_grad_thresh,
        grow_scale3d=config.densify_size_thresh,
        grow_scale2d=config.split_screen_size,
        prune_scale3d=config.cull_scale_thresh,
        prune_scale2d=config.cull_screen_size,
        refine_scale2d_stop_iter=config.stop_screen_size_at,
        refine_start_iter=config.warmup_length,
        refine_stop_iter=0 if config.strategy == "none" else config.stop_split_at,
        reset_every=config.reset_alpha_every * config.refine_every,
        refine_every=config.refine_every,
        pause_refine_after_reset=num_views + config.refine_every,
        absgrad=config.use_absgrad and config.strategy != "none",
        revised_opacity=False,
        verbose=False,
        max_gaussians=config.max_gaussians,
    )

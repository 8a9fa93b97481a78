"""The schedule's buffers in the original checkpoint, computed anew.

The original stores thirteen of them beside its weights; only `scale_arr` carries information.
"""

import numpy as np
import torch
from torch import Tensor

from fvgen_recon.diffusion.schedule import ViewCrafterSchedule


def original_buffers(schedule: ViewCrafterSchedule) -> dict[str, Tensor]:
    """Return the original's buffers by name, computed in float64 and stored in float32."""
    betas = schedule.betas()
    alphas = 1.0 - betas
    alpha_bar = np.cumprod(alphas)
    previous = np.append(1.0, alpha_bar[:-1])
    variance = betas * (1.0 - previous) / (1.0 - alpha_bar)
    zeros = np.zeros_like(betas)
    buffers = {
        "betas": betas,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": np.sqrt(alpha_bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - alpha_bar),
        "log_one_minus_alphas_cumprod": np.log(1.0 - alpha_bar),
        # A v-predicting model must not use these two; the original fills them with zeros.
        "sqrt_recip_alphas_cumprod": zeros,
        "sqrt_recipm1_alphas_cumprod": zeros,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (1.0 - alpha_bar),
        "posterior_mean_coef2": (1.0 - previous) * np.sqrt(alphas) / (1.0 - alpha_bar),
        "scale_arr": schedule.scale_table(),
    }
    return {name: torch.from_numpy(values).float() for name, values in buffers.items()}

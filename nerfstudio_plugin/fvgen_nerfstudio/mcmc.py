"""Markov-chain splatting: faint Gaussians move to where opaque ones are, and all of them jitter.

Kheradmand et al., "3D Gaussian splatting as Markov chain Monte Carlo" (2024). gsplat has the same
strategy for CUDA only; this one runs on any device and draws its randomness from the step, so that
a resumed run goes on as it would have.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fvgen_nerfstudio.gaussian import append_gaussians
from fvgen_nerfstudio.strategy import StrategyState
from fvgen_recon.render.gaussian_relocation import compute_relocation, quat_scale_to_covar_preci

_MAX_COPIES = 51
_SHARPNESS, _FAINT = 100.0, 0.005


@dataclass
class McmcStrategy:
    """Relocates, adds and jitters Gaussians; none is ever pruned."""

    refine_start_iter: int
    """Step after which Gaussians are relocated and added."""
    refine_stop_iter: int
    """Step from which they no longer are."""
    refine_every: int
    """Steps between refinements."""
    max_gaussians: int
    """Number of Gaussians above which none is added."""
    growth: float = 0.05
    """Share of Gaussians that is added at each refinement."""
    min_opacity: float = 0.005
    """Opacity at which a Gaussian is relocated."""
    noise: float = 5e5
    """Factor on the learning rate of the means that gives the size of the jitter."""
    absgrad: bool = False
    loss_factor: float = 1.0
    """Not used here; the default strategy's statistics need it."""

    def initialize_state(self, scene_scale: float = 1.0) -> StrategyState:
        """Return the running state: binomial coefficients, row n column k is n over k."""
        del scene_scale
        rows = [[float(math.comb(n, k)) for k in range(_MAX_COPIES)] for n in range(_MAX_COPIES)]
        return {"binoms": torch.tensor(rows)}

    def step_pre_backward(self, *_: Any, **__: Any) -> None:
        """Do nothing: no gradients are kept."""

    def step_post_backward(
        self,
        params: Any,
        optimizers: dict[str, torch.optim.Optimizer],
        state: StrategyState,
        step: int,
        info: dict[str, Any],
        packed: bool = False,
    ) -> None:
        """Relocate and add where the step is due, then jitter."""
        del info, packed
        device = params["means"].device
        rng = torch.Generator(device).manual_seed(step)
        is_due = step > self.refine_start_iter and step % self.refine_every == 0
        if is_due and step < self.refine_stop_iter:
            self._relocate(params, optimizers, state, rng)
            self._add(params, optimizers, state, rng)
        self._jitter(params, float(optimizers["means"].param_groups[0]["lr"]), rng)

    @torch.no_grad()
    def _relocate(
        self, params: Any, optimizers: dict, state: StrategyState, rng: torch.Generator
    ) -> None:
        """Move faint Gaussians onto opaque ones, chosen in proportion to opacity."""
        opacity = torch.sigmoid(params["opacities"].flatten())
        dead = torch.nonzero(opacity <= self.min_opacity).squeeze(-1)
        alive = torch.nonzero(opacity > self.min_opacity).squeeze(-1)
        if not len(dead) or not len(alive):
            return
        drawn = torch.multinomial(opacity[alive], len(dead), replacement=True, generator=rng)
        sources = alive[drawn]
        self._share(params, state, opacity, sources)
        for name, param in params.items():
            param[dead] = param[sources]
            for key, value in optimizers[name].state.get(param, {}).items():
                if key != "step":
                    value[sources] = 0
        for key in _carried(state):
            state[key][dead] = state[key][sources]

    @torch.no_grad()
    def _add(
        self, params: Any, optimizers: dict, state: StrategyState, rng: torch.Generator
    ) -> None:
        """Add copies of opaque Gaussians."""
        num_points = len(params["means"])
        target = min(self.max_gaussians, int((1 + self.growth) * num_points))
        if target <= num_points:
            return
        opacity = torch.sigmoid(params["opacities"].flatten())
        sources = torch.multinomial(opacity, target - num_points, replacement=True, generator=rng)
        self._share(params, state, opacity, sources)
        carried = {key: state[key][sources] for key in _carried(state)}
        binoms = {"binoms": state.pop("binoms")}
        append_gaussians(params, optimizers, state, {k: v[sources] for k, v in params.items()})
        for key, value in carried.items():
            state[key][num_points:] = value
        state.update(binoms)

    @staticmethod
    def _share(params: Any, state: StrategyState, opacity: Tensor, sources: Tensor) -> None:
        """Make each source as faint and small as its copies need to look, together, like it."""
        state["binoms"] = state["binoms"].to(opacity.device)
        unique = sources.unique()
        copies = torch.bincount(sources, minlength=len(opacity))[unique] + 1
        new_opacity, new_scales = compute_relocation(
            opacity[unique], torch.exp(params["scales"][unique]), copies, state["binoms"]
        )
        params["opacities"][unique] = torch.logit(new_opacity.clamp(_FAINT, 1 - 1e-6))[:, None]
        params["scales"][unique] = new_scales.log()

    @torch.no_grad()
    def _jitter(self, params: Any, learning_rate: float, rng: torch.Generator) -> None:
        """Move Gaussians at random within their shapes, faint ones only (equation 6)."""
        opacity = torch.sigmoid(params["opacities"].flatten())
        gate = torch.sigmoid(-_SHARPNESS * (opacity - _FAINT))
        covariance, _ = quat_scale_to_covar_preci(
            params["quats"], torch.exp(params["scales"]), compute_preci=False
        )
        assert covariance is not None, "Covariances were asked for."
        means = params["means"]
        draw = torch.randn(means.shape, generator=rng, device=means.device)
        draw = draw * (gate * self.noise * learning_rate)[:, None]
        means.add_(torch.einsum("nij,nj->ni", covariance, draw))


def _carried(state: StrategyState) -> list[str]:
    """Return the names of what the state knows of every Gaussian."""
    return [key for key, value in state.items() if isinstance(value, Tensor) and key != "binoms"]

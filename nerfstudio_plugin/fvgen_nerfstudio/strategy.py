"""Adding and removing Gaussians: gsplat's default strategy, held to one behaviour across versions.

gsplat 1.4 and 1.5 differ in the shape of radii that they expect (our rasteriser always gives one a
Gaussian and camera) and in when they reset opacities (1.5.3 never does, because of a slip in
operator precedence). This subclass keeps the published rules of Kerbl et al., 3D Gaussian Splatting
(2023), and of AbsGS (2024) for both.
"""

from dataclasses import dataclass
from typing import Any

import torch
from gsplat.strategy import DefaultStrategy
from gsplat.strategy.ops import reset_opa

StrategyState = dict[str, Any]
"""gsplat's own running state: `grad2d`, `count` and `radii`, one value a Gaussian."""


@dataclass
class SplatStrategy(DefaultStrategy):
    """Splits, duplicates, prunes and resets; never resets at step 0 nor after refinement ends."""

    max_gaussians: int = 2_000_000
    """Number of Gaussians above which none are split or duplicated."""
    loss_factor: float = 1.0
    """Factor that the last view's loss was multiplied by; its gradients are divided by it, so that
    a view that counts little in the loss does not hold back growth where only it looks."""

    def step_post_backward(
        self,
        params: Any,
        optimizers: dict[str, torch.optim.Optimizer],
        state: StrategyState,
        step: int,
        info: dict[str, Any],
        packed: bool = False,
    ) -> None:
        """Update the statistics; refine and reset opacities where the step is due."""
        assert not packed, "The statistics below are those of unpacked rasterization."
        if step >= self.refine_stop_iter:
            return
        self.observe(params, state, info)
        since_reset = step % self.reset_every
        is_due = step > self.refine_start_iter and step % self.refine_every == 0
        if is_due and (since_reset >= self.pause_refine_after_reset or step < self.reset_every):
            self._refine(params, optimizers, state, step)
        if step > 0 and since_reset == 0:
            reset_opa(params=params, optimizers=optimizers, state=state, value=2.0 * self.prune_opa)

    def observe(self, params: Any, state: StrategyState, info: dict[str, Any]) -> None:
        """Add one render's screen-space gradients and radii to the running statistics."""
        if self.loss_factor == 0:
            return
        means2d = info["means2d"]
        grads = means2d.absgrad if self.absgrad else means2d.grad
        half_size = grads.new_tensor([info["width"] / 2.0, info["height"] / 2.0])
        norms = (grads * half_size * info["n_cameras"]).norm(dim=-1) / self.loss_factor
        radii = info["radii"].to(norms.dtype)
        num_gaussians = len(params["means"])
        for key in ("grad2d", "count", "radii"):
            if state.get(key) is None:
                state[key] = torch.zeros(num_gaussians, device=norms.device)
        seen = radii > 0
        state["grad2d"] += torch.where(seen, norms, torch.zeros_like(norms)).sum(0)
        state["count"] += seen.sum(0).to(norms.dtype)
        relative = radii.amax(0) / float(max(info["width"], info["height"]))
        state["radii"] = torch.maximum(state["radii"], relative)

    def _refine(
        self,
        params: Any,
        optimizers: dict[str, torch.optim.Optimizer],
        state: StrategyState,
        step: int,
    ) -> None:
        """Grow, prune and start the statistics anew."""
        num_copied, num_split = 0, 0
        if len(params["means"]) < self.max_gaussians:
            num_copied, num_split = self._grow_gs(params, optimizers, state, step)
        num_pruned = self._prune_gs(params, optimizers, state, step)
        if self.verbose:
            print(  # noqa: T201 - nerfstudio's console shows what a strategy prints.
                f"Step {step}: {num_copied} Gaussians duplicated, {num_split} split, "
                f"{num_pruned} pruned; now {len(params['means'])}."
            )
        for key in ("grad2d", "count", "radii"):
            state[key].zero_()

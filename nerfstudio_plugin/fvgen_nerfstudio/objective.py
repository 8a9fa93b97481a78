"""What a splat is held to in training: its losses, and the numbers that are shown of them."""

from typing import Any

import torch
import torch.nn.functional as F
from nerfstudio.model_components.lib_bilagrid import total_variation_loss
from torch import Tensor

from fvgen_nerfstudio.graph import Loss, Replayed
from fvgen_nerfstudio.loss import frame_loss, photo_loss
from fvgen_nerfstudio.mcmc import McmcStrategy
from fvgen_nerfstudio.refinement import RefinableModel
from fvgen_nerfstudio.regularizer import (
    disparity_loss,
    elongation_loss,
    solid_loss,
)
from fvgen_nerfstudio.strategy import SplatStrategy

_SMOOTHING = 0.98
_SHAPE_EVERY = 10  # Steps between two looks at shapes, as in splatfacto.


class TrainableModel(RefinableModel):
    """A splat with splatfacto's losses, weighed pixel by pixel on generated views."""

    strategy: SplatStrategy | McmcStrategy
    """What adds and removes Gaussians."""
    strategy_state: dict[str, Any]
    """What the strategy knows of the Gaussians, and the member that each belongs to."""

    def wrap(self, function: Loss) -> Loss:
        """Return a function whose kernels a CUDA device records once, where that is asked for."""
        return Replayed(function) if self.config.replay else function

    def prepare_losses(self) -> None:
        """Begin without a running loss."""
        self.running_loss: dict[str, Tensor] = {}
        self._target: tuple[Tensor, int, Tensor] | None = None
        share = self.config.ssim_lambda
        self._photo_losses = self.wrap(lambda image, photo: (photo_loss(image, photo, share),))
        self._frame_losses = self.wrap(
            lambda image, frame, weight: (frame_loss(image, frame, weight, share),)
        )
        self._depth_losses = self.wrap(lambda *tensors: (disparity_loss(*tensors),))

    def _target_of(self, batch: dict[str, Any]) -> Tensor:
        """Return a view's image `H W 3` at the current size, once for metrics and losses."""
        image, factor = batch["image"], self._get_downscale_factor()
        if self._target is None or self._target[0] is not image or self._target[1] != factor:
            self._target = (image, factor, self.get_gt_img(image))
        return self._target[2]

    @torch.no_grad()
    def get_metrics_dict(self, outputs: dict, batch: dict) -> dict[str, Any]:
        """Return PSNR under a name that says what it was measured on, and running losses."""
        kind = "generated" if batch.get("is_generated", False) else "real"
        error = F.mse_loss(outputs["rgb"], self._target_of(batch))
        metrics = {
            f"psnr_{kind}": -10 * error.log10(),
            "gaussian_count": self.num_points,
            **{f"running_loss_{key}": value for key, value in self.running_loss.items()},
        }
        if kind == "real":
            metrics["psnr"] = metrics["psnr_real"]
        self.camera_optimizer.get_metrics_dict(metrics)
        return metrics

    def get_loss_dict(
        self, outputs: dict, batch: dict, metrics_dict: dict | None = None
    ) -> dict[str, Tensor]:
        """Return splatfacto's losses; a generated view's are weighed pixel by pixel."""
        is_generated = batch.get("is_generated", False)
        self.strategy.loss_factor = batch["factor"] if is_generated else 1.0
        prediction, target = (x.permute(2, 0, 1) for x in (outputs["rgb"], self._target_of(batch)))
        if is_generated:
            weight = self._downscale_if_required(batch["weight"]).to(self.device)
            loss = self._frame_losses(prediction, target, weight.permute(2, 0, 1))[0]
            losses = {"main_loss": batch["factor"] * loss}
        else:
            losses = {"main_loss": self._photo_losses(prediction, target)[0]}
        if self.training:
            losses.update(self._regularisers(outputs, batch))
            main = losses["main_loss"].detach()
            self._note_loss("mixed", main)
            self._note_loss("generated" if is_generated else "real", main)
        return losses

    def _regularisers(self, outputs: dict, batch: dict) -> dict[str, Tensor]:
        """Return the losses that look at shapes, those that are turned on."""
        config, losses = self.config, self._stock_regularisers()
        if config.opacity_weight > 0:
            mean = torch.sigmoid(self.opacities).mean()
            losses["opacity_loss"] = config.opacity_weight * mean
        if config.scale_weight > 0:
            losses["scale_loss"] = config.scale_weight * torch.exp(self.scales).mean()
        if batch.get("is_generated", False) or "depth" not in batch:
            return losses
        alpha = outputs["accumulation"].permute(2, 0, 1)
        if config.depth_weight > 0:
            depth = outputs["depth"].permute(2, 0, 1)
            measured = (batch["depth"], batch["depth_weight"])
            loss = self._depth_losses(depth, alpha.detach(), *measured)[0]
            losses["depth_loss"] = config.depth_weight * loss
        if config.solid_weight > 0:
            loss = solid_loss(alpha, batch["depth_weight"])
            losses["solid_loss"] = config.solid_weight * loss
        return losses

    def _stock_regularisers(self) -> dict[str, Tensor]:
        """Return splatfacto's losses beside the main one, those that are turned on."""
        losses: dict[str, Tensor] = {}
        if self.config.use_scale_regularization and self.step % _SHAPE_EVERY == 0:
            limit = self.config.max_gauss_ratio
            losses["scale_reg"] = 0.1 * elongation_loss(torch.exp(self.scales), limit)
        self.camera_optimizer.get_loss_dict(losses)
        if self.config.use_bilateral_grid:
            losses["tv_loss"] = 10 * total_variation_loss(self.bil_grids.grids)
        return losses

    def _note_loss(self, key: str, value: Tensor) -> None:
        """Keep a running mean; a tensor, as reading it would make the host wait for the GPU."""
        old = self.running_loss.get(key)
        self.running_loss[key] = value if old is None else torch.lerp(value, old, _SMOOTHING)

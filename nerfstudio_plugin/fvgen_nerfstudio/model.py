"""The splat: splatfacto's Gaussians on our rasteriser, trained on real and generated views."""

import random
from typing import Any

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras as NerfCameras
from nerfstudio.model_components.lib_bilagrid import (
    BilateralGrid,
    color_correct,
    total_variation_loss,
)
from nerfstudio.models.splatfacto import SplatfactoModel
from nerfstudio.utils.colors import get_color
from nerfstudio.utils.rich_utils import CONSOLE
from pytorch_msssim import SSIM
from torch import Tensor
from torch.nn import Parameter, ParameterDict

from fvgen_nerfstudio.background import fill_holes
from fvgen_nerfstudio.camera import MEMBER, KnownView, known_view, to_nerfstudio, view_matrices
from fvgen_nerfstudio.ensemble import mean_render, member_indices
from fvgen_nerfstudio.exposure import Exposure
from fvgen_nerfstudio.gaussian import NAMES, append_gaussians, make_gaussians, resize_parameter
from fvgen_nerfstudio.graph import Replayed
from fvgen_nerfstudio.growth import make_strategy
from fvgen_nerfstudio.loss import frame_loss, photo_loss
from fvgen_nerfstudio.perceptual import PerceptualMetrics
from fvgen_nerfstudio.refinement import RefinableModel
from fvgen_nerfstudio.regularizer import (
    disparity_loss,
    drop_opacities,
    elongation_loss,
    smoothness_loss,
    solid_loss,
)
from fvgen_nerfstudio.seed import seed_gaussians, seed_origins
from fvgen_nerfstudio.settings import FvgenModelConfig
from fvgen_recon.geometry.conventions import opencv_to_opengl
from fvgen_recon.types import Cameras, PointCloud

VISER_BACKGROUND = (0.1490, 0.1647, 0.2157)
"""What renders show behind the splat when training backgrounds are random: the viewer's colour."""
_SMOOTHING = 0.98
_SHAPE_EVERY = 10  # Steps between two looks at shapes, as in splatfacto.
_NEAR, _FAR = 0.01, 1e10


class FvgenModel(RefinableModel):
    """A `SplatfactoModel` (viewer and exporter ask for one) that runs without CUDA."""

    config: FvgenModelConfig

    def populate_modules(self) -> None:
        """Create the Gaussians, the metrics and the strategy; nothing is downloaded."""
        from torchmetrics.image import PeakSignalNoiseRatio

        metadata = self.kwargs.get("metadata") or {}
        gaussians = seed_gaussians(self.config, self.seed_points, metadata)
        self.gauss_params = ParameterDict({k: Parameter(v) for k, v in gaussians.items()})
        self.camera_optimizer = self.config.camera_optimizer.setup(
            num_cameras=self.num_train_data, device="cpu"
        )
        self.exposure = Exposure(self.num_train_data, metadata)
        self.psnr = PeakSignalNoiseRatio(data_range=1.0)
        self.ssim = SSIM(data_range=1.0, size_average=True, channel=3)
        self.perceptual = PerceptualMetrics(CONSOLE.log)
        self.step, self.num_steps = 0, 1
        self.left_out: int | None = None
        self.crop_box = None
        is_random = self.config.background_color == "random"
        self.background_color = (
            torch.tensor(VISER_BACKGROUND) if is_random else get_color(self.config.background_color)
        )
        if self.config.use_bilateral_grid:
            width, height, depth = self.config.grid_shape
            self.bil_grids = BilateralGrid(
                num=self.num_train_data, grid_X=width, grid_Y=height, grid_W=depth
            )
        self.strategy = make_strategy(self.config, self.num_train_data)
        self.strategy_state = self.strategy.initialize_state(scene_scale=1.0)
        self.strategy_state.update(seed_origins(self.num_points, metadata))
        self.running_loss: dict[str, Tensor] = {}
        self._target: tuple[Tensor, int, Tensor] | None = None
        self._members: tuple[Tensor, list[Tensor]] | None = None
        wrap = Replayed if self.config.replay else lambda function: function
        share = self.config.ssim_lambda
        self._filled = wrap(lambda *tensors: (fill_holes(*tensors),))
        self._photo_losses = wrap(lambda image, photo: (photo_loss(image, photo, share),))
        self._frame_losses = wrap(lambda image, frame, w: (frame_loss(image, frame, w, share),))
        self._depth_losses = wrap(lambda *tensors: (disparity_loss(*tensors),))

    def rasterize_view(
        self,
        viewmats: Tensor,
        K: Tensor,
        size: tuple[int, int],
        *,
        with_depth: bool,
        chosen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Render the Gaussians on black.

        Args:
            viewmats: World to camera `1 4 4`, OpenCV axes.
            K: Its intrinsics `1 3 3`.
            size: Height and width.
            with_depth: Whether expected z-depth follows the colours as a fourth channel.
            chosen: Mask or indices of the Gaussians to draw; all by default.

        Returns:
            Colours `1 H W 3|4`, opacity `1 H W 1` and the rasteriser's own notes.
        """
        from fvgen_recon.render.gaussian import rasterize

        params = {n: p if chosen is None else p[chosen] for n, p in self.gauss_params.items()}
        if self.config.sh_degree > 0:
            colors = torch.cat([params["features_dc"][:, None], params["features_rest"]], dim=1)
            degree = min(self.step // self.config.sh_degree_interval, self.config.sh_degree)
        else:
            colors, degree = torch.sigmoid(params["features_dc"]), None
        return rasterize(
            means=params["means"],
            quats=params["quats"],
            scales=torch.exp(params["scales"]),
            opacities=self._opacities(params["opacities"], chosen),
            colors=colors,
            viewmats=viewmats,
            Ks=K,
            width=size[1],
            height=size[0],
            sh_degree=degree,
            near_plane=_NEAR,
            far_plane=_FAR,
            packed=False,
            render_mode="RGB+ED" if with_depth else "RGB",
            absgrad=self.strategy.absgrad,
            rasterize_mode=self.config.rasterize_mode,
        )

    def _opacities(self, logits: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Return opacities; in training a share of the Gaussians is left out."""
        opacities = torch.sigmoid(logits).squeeze(-1)
        if self.training and self.left_out is not None:
            origin = self.strategy_state["origin"]
            origin = origin if chosen is None else origin[chosen]
            opacities = opacities * (origin != self.left_out + 1)
        rate = self.config.dropout * min(1.0, self.step / self.num_steps)
        if not self.training or rate == 0:
            return opacities
        rng = torch.Generator(opacities.device).manual_seed(self.step)
        return drop_opacities(opacities, rate, rng)

    def get_outputs(self, camera: NerfCameras) -> dict[str, Tensor | list]:
        """Render one camera; in training, note what the strategy needs."""
        if not isinstance(camera, NerfCameras):
            return {}  # ns-render's nearest-camera option asks with rays; splatfacto answers so.
        chosen, view = self._cropped(), known_view(camera)
        size, K = self._scaled_view(view)
        if chosen is not None and not bool(chosen.any()):
            return self.get_empty_outputs(size[1], size[0], self.background_color.to(self.device))
        viewmats = view.viewmat
        if self.training:
            assert camera.shape[0] == 1, "Training renders one camera at a time."
            if self.config.camera_optimizer.mode != "off":
                viewmats = view_matrices(self.camera_optimizer.apply_to_camera(camera))
            self._move_state()
        config = self.config
        needs_depth = config.depth_weight > 0 or config.smooth_weight > 0
        with_depth = needs_depth or config.output_depth_during_training or not self.training
        self.left_out, self.last_size = self._left_out(camera), size
        renders = []
        for mask in self._shown(camera, chosen):
            colors, alpha, self.info = self.rasterize_view(
                viewmats.to(self.device), K, size, with_depth=with_depth, chosen=mask
            )
            renders.append(self._compose(colors, alpha, camera))
        if self.training:
            self.strategy.step_pre_backward(
                self.gauss_params, self.optimizers, self.strategy_state, self.step, self.info
            )
        with_spread = self.frame_source is not None and not self.training
        return mean_render(renders, with_spread=with_spread)

    def _shown(self, camera: NerfCameras, chosen: Tensor | None) -> list[Tensor | None]:
        """Return which Gaussians to draw: each member's, in training that of the step."""
        count, state = self.config.num_members, self.strategy_state["member"]
        if count == 1:
            return [chosen]
        if self._members is None or self._members[0] is not state:
            self._members = state, member_indices(state.to(self.device), count)
        member = (camera.metadata or {}).get(MEMBER) if self.training else None
        indices = self._members[1] if member is None else [self._members[1][member]]
        return [index if chosen is None else index[chosen[index]] for index in indices]

    def _move_state(self) -> None:
        """Bring the strategy's running state to the splat's device."""
        for key, value in self.strategy_state.items():
            if isinstance(value, Tensor) and value.device != self.device:
                self.strategy_state[key] = value.to(self.device)

    def _left_out(self, camera: NerfCameras) -> int | None:
        """Return the photo whose Gaussians are left out of this training step, or none."""
        view = (camera.metadata or {}).get("cam_idx")
        if not self.training or view is None or self.config.cross_view == 0:
            return None
        return view if random.Random(self.step).random() < self.config.cross_view else None

    def _cropped(self) -> Tensor | None:
        """Return which Gaussians lie in the viewer's crop box, or none where there is no box."""
        if self.crop_box is None or self.training:
            return None
        return self.crop_box.within(self.means).squeeze(-1)

    def _scaled_view(self, view: KnownView) -> tuple[tuple[int, int], Tensor]:
        """Return image size and intrinsics at the current training resolution."""
        factor, K = self._get_downscale_factor(), view.K.to(self.device)
        if factor > 1:
            K = torch.cat([K[:, :2] / factor, K[:, 2:]], dim=1)
        return (view.height // factor, view.width // factor), K

    def _compose(self, colors: Tensor, alpha: Tensor, camera: NerfCameras) -> dict[str, Any]:
        """Put a render on its background."""
        background = self._get_background_color()
        unknown = self.config.unknown
        is_filled = unknown == "diffuse-always" or (unknown == "diffuse" and not self.training)
        # A viewer's crop box stays set while training goes on, and is none of its business.
        if is_filled and (self.training or self.crop_box is None):
            (rgb,) = self._filled(colors[..., :3], alpha, self._mean_color())
        else:
            rgb = colors[..., :3] + (1 - alpha) * background
        rgb = self.exposure(rgb, camera).clamp(0.0, 1.0)
        size, metadata = rgb.shape[1:3], camera.metadata or {}
        if self.config.use_bilateral_grid and self.training and "cam_idx" in metadata:
            rgb = self._apply_bilateral_grid(rgb, metadata["cam_idx"], *size)
        depth = None
        if colors.shape[-1] == 4:
            far = colors[..., 3:].detach().max()
            depth = torch.where(alpha > 0, colors[..., 3:], far).squeeze(0)
        if not self.training:
            background = background.expand(*size, 3)
        return {
            "rgb": rgb.squeeze(0),
            "depth": depth,
            "accumulation": alpha.squeeze(0),
            "background": background,
        }

    def _mean_color(self) -> Tensor:
        """Return what a view shows in which there is no Gaussian: their mean colour, `3`."""
        return self.colors.detach().clamp(0, 1).mean(dim=0)

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
        elif self.training and self.left_out is not None:
            # A photo counts by how surely other photos show the same, where they show anything.
            alpha = outputs["accumulation"].detach().permute(2, 0, 1)
            trust, size = batch["depth_weight"][None], alpha.shape[1:]
            surely = F.interpolate(trust, size, mode="nearest-exact")
            losses = {"main_loss": self._frame_losses(prediction, target, alpha * surely[0])[0]}
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
        if config.doubt_weight > 0:
            doubt = self.strategy_state["doubt"][:, None]
            mean = (doubt * torch.sigmoid(self.opacities)).mean()
            losses["doubt_loss"] = config.doubt_weight * mean
        if config.scale_weight > 0:
            losses["scale_loss"] = config.scale_weight * torch.exp(self.scales).mean()
        if batch.get("is_generated", False) or outputs["depth"] is None:
            return losses
        depth, alpha = (outputs[key].permute(2, 0, 1) for key in ("depth", "accumulation"))
        if config.depth_weight > 0 and "depth" in batch:
            measured = (batch["depth"], batch["depth_weight"])
            loss = self._depth_losses(depth, alpha.detach(), *measured)[0]
            losses["depth_loss"] = config.depth_weight * loss
        if config.solid_weight > 0 and "depth" in batch:
            loss = solid_loss(alpha, batch["depth_weight"])
            losses["solid_loss"] = config.solid_weight * loss
        if config.smooth_weight > 0:
            image = self._target_of(batch).permute(2, 0, 1)
            losses["smooth_loss"] = config.smooth_weight * smoothness_loss(depth, alpha, image)
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

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Return PSNR, SSIM and what perceptual metrics can be had, and truth beside render."""
        target = self.composite_with_background(
            self.get_gt_img(batch["image"]), outputs["background"]
        )
        metrics = self._compare(outputs["rgb"], target)
        if self.config.color_corrected_metrics:
            corrected = color_correct(outputs["rgb"], target)
            found = self._compare(corrected, target)
            metrics.update({f"cc_{name}": value for name, value in found.items()})
        return metrics, {"img": torch.cat([target, outputs["rgb"]], dim=1)}

    def _compare(self, image: Tensor, target: Tensor) -> dict[str, float]:
        """Return PSNR, SSIM and perceptual metrics of an image `H W 3`."""
        first, second = (x.permute(2, 0, 1)[None] for x in (target, image))
        metrics = {"psnr": float(self.psnr(second, first)), "ssim": float(self.ssim(first, second))}
        return {**metrics, **self.perceptual.measure(second, first)}

    def get_extra_state(self) -> Tensor:
        """Return the member that each Gaussian belongs to, for checkpoints."""
        return self.strategy_state["member"]

    def set_extra_state(self, state: Tensor) -> None:
        """Take the members of a checkpoint's Gaussians."""
        self.strategy_state["member"] = state

    def update_to_step(self, step: int) -> None:
        """Set the step that a checkpoint was saved at: it decides the SH degree in use."""
        self.step = step

    def load_state_dict(self, state: dict[str, Tensor], **kwargs: Any) -> Any:
        """Load Gaussians of any number into the parameters that the optimizers already hold.

        Raises:
            WeightsError: The state is not a splat's, or has another SH degree.
        """
        state = {k: v for k, v in state.items() if not k.startswith("lpips.")}
        for name in NAMES:
            resize_parameter(self.gauss_params[name], name, state.get(f"gauss_params.{name}"))
        for name, value in self.exposure.state_dict(prefix="exposure.").items():
            state.setdefault(name, value)  # Older checkpoints know none.
        state.setdefault("_extra_state", torch.zeros(len(state["gauss_params.means"])))
        # What is known of the Gaussians belongs to others; a trainer that resumes brings its own.
        self.strategy_state.update(seed_origins(self.num_points, {}))
        return super(SplatfactoModel, self).load_state_dict(state, **kwargs)

    @torch.no_grad()
    def add_points(self, cloud: PointCloud) -> int:
        """Add Gaussians on points to every member, if there is room; return how many were added."""
        count, old = self.config.num_members, self.num_points
        if count * len(cloud) > self.config.max_gaussians - old or len(cloud) < 2:
            return 0
        new = make_gaussians(cloud, self.config.sh_degree)
        new = {name: value.repeat(count, *[1] * (value.dim() - 1)) for name, value in new.items()}
        append_gaussians(self.gauss_params, self.optimizers, self.strategy_state, new)
        member = self.strategy_state["member"]
        member[old:] = torch.arange(count).repeat_interleave(len(cloud)).to(member)
        return count * len(cloud)

    @torch.no_grad()
    def render_black(self, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
        """Render OpenCV cameras on black: colours `T 3 H W`, opacity and depth `T 1 H W`.

        The splat is shown as in evaluation, also in the midst of training, where a round asks: with
        all its Gaussians and all its members.
        """
        is_training = self.training
        self.eval()
        try:
            return self._render_black(cameras)
        finally:
            self.train(is_training)

    def _render_black(self, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
        size = (cameras.height, cameras.width)
        self.left_out, masks = None, self._shown(to_nerfstudio(cameras[0]), None)
        rows = []
        for camera in cameras.to(self.device):
            view = (view_matrices(opencv_to_opengl(camera.c2w)[None, :3]), camera.K[None], size)
            shown = [self.rasterize_view(*view, with_depth=True, chosen=mask) for mask in masks]
            rows.append(
                [torch.stack(parts).mean(0) for parts in zip(*(x[:2] for x in shown), strict=True)]
            )
        colors = torch.cat([row[0] for row in rows]).permute(0, 3, 1, 2)
        alpha = torch.cat([row[1] for row in rows]).permute(0, 3, 1, 2)
        return colors[:, :3].clamp(0, 1), alpha.clamp(0, 1), colors[:, 3:] * (alpha > 0)

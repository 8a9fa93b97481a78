"""The splat: splatfacto's Gaussians on our rasteriser, trained on real and generated views."""

from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras as NerfCameras
from nerfstudio.model_components.lib_bilagrid import BilateralGrid
from nerfstudio.models.splatfacto import SplatfactoModel
from nerfstudio.utils.colors import get_color
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn import Parameter, ParameterDict

from fvgen_nerfstudio.background import fill_holes
from fvgen_nerfstudio.camera import MEMBER, KnownView, known_view, to_nerfstudio, view_matrices
from fvgen_nerfstudio.ensemble import mean_render, member_indices
from fvgen_nerfstudio.exposure import Exposure
from fvgen_nerfstudio.gaussian import NAMES, append_gaussians, make_gaussians, resize_parameter
from fvgen_nerfstudio.growth import make_strategy
from fvgen_nerfstudio.metric import ImageMetrics
from fvgen_nerfstudio.objective import TrainableModel
from fvgen_nerfstudio.regularizer import drop_opacities
from fvgen_nerfstudio.seed import seed_gaussians, seed_members
from fvgen_nerfstudio.settings import FvgenModelConfig
from fvgen_recon.geometry.conventions import opencv_to_opengl
from fvgen_recon.types import Cameras, PointCloud

VISER_BACKGROUND = (0.1490, 0.1647, 0.2157)
"""What renders show behind the splat when training backgrounds are random: the viewer's colour."""
_NEAR, _FAR = 0.01, 1e10


class FvgenModel(TrainableModel):
    """A `SplatfactoModel` (viewer and exporter ask for one) that runs without CUDA."""

    config: FvgenModelConfig
    nearest: Tensor
    """The nearest distance that an input photo shows, in world units; 0 where it is not known."""

    def populate_modules(self) -> None:
        """Create the Gaussians, the metrics and the strategy; nothing is downloaded."""
        metadata = self.kwargs.get("metadata") or {}
        gaussians = seed_gaussians(self.config, self.seed_points, metadata)
        self.gauss_params = ParameterDict({k: Parameter(v) for k, v in gaussians.items()})
        self.camera_optimizer = self.config.camera_optimizer.setup(
            num_cameras=self.num_train_data, device="cpu"
        )
        self.exposure = Exposure(self.num_train_data, metadata)
        self.register_buffer("nearest", metadata.get("photo_nearest", torch.zeros(())).float())
        self.image_metrics = ImageMetrics(CONSOLE.log)
        self.step, self.num_steps = 0, 1
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
        self.strategy_state["member"] = seed_members(self.num_points, metadata)
        self._members: tuple[Tensor, list[Tensor]] | None = None
        self._filled = self.wrap(lambda *tensors: (fill_holes(*tensors),))
        self.prepare_losses()

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
            opacities=self._opacities(params["opacities"]),
            colors=colors,
            viewmats=viewmats,
            Ks=K,
            width=size[1],
            height=size[0],
            sh_degree=degree,
            near_plane=self._near_plane(),
            far_plane=_FAR,
            packed=False,
            render_mode="RGB+ED" if with_depth else "RGB",
            absgrad=self.strategy.absgrad,
            rasterize_mode=self.config.rasterize_mode,
        )

    def _near_plane(self) -> float:
        """Return the distance from which Gaussians are drawn."""
        if self.training:  # Reading a number would make a GPU wait, and photos show no such thing.
            return _NEAR
        return max(_NEAR, self.config.near * float(self.nearest))

    def _opacities(self, logits: Tensor) -> Tensor:
        """Return opacities; in training a share of the Gaussians is left out."""
        opacities = torch.sigmoid(logits).squeeze(-1)
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
        needs_depth = self.config.depth_weight > 0 or self.config.output_depth_during_training
        with_depth = needs_depth or not self.training
        self.last_size = size
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

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Return PSNR, SSIM and what perceptual metrics can be had, and truth beside render."""
        target = self.composite_with_background(
            self.get_gt_img(batch["image"]), outputs["background"]
        )
        corrected = self.config.color_corrected_metrics
        metrics = self.image_metrics.measure(outputs["rgb"], target, color_corrected=corrected)
        return metrics, {"img": torch.cat([target, outputs["rgb"]], dim=1)}

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
        state.setdefault("nearest", torch.zeros(()))
        state.setdefault("_extra_state", torch.zeros(len(state["gauss_params.means"])))
        # What is known of the Gaussians belongs to others; a trainer that resumes brings its own.
        self.strategy_state["member"] = seed_members(self.num_points, {})
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
        masks = self._shown(to_nerfstudio(cameras[0]), None)
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

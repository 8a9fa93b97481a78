"""Point clouds from DUSt3R, where the user has installed it and has its weights.

S. Wang et al., "DUSt3R: Geometric 3D vision made easy", CVPR 2024. Its code and weights are for
non-commercial use only; nothing of them is in this project. Both naver's checkout (`dust3r`) and
the package `mini-dust3r` (`mini_dust3r`) are understood.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.errors import InputError, MissingDependencyError, WeightsError
from fvgen_recon.pointcloud.alignment import align_cameras
from fvgen_recon.types import Cameras, PointCloud, Scene

_PATCH = 16
_LEARNING_RATE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Dust3r:
    """DUSt3R's pairwise point maps, brought together by its global alignment."""

    weights: str = "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt"
    """Folder with `config.json` and `model.safetensors`, or their name in Hugging Face's cache."""
    keep_cameras: bool = True
    """Hold the known poses and intrinsics fixed; else they are estimated and the result is laid
    over the known cameras by a similarity transform."""
    num_iterations: int = 300
    """Steps of the global alignment."""
    long_side: int = 512
    """Longer side of the images shown to the network."""
    seed: int = 0
    """Seed of the alignment's random start."""

    def estimate(self, scene: Scene) -> PointCloud:
        """Return one point for each pixel of the images shown to the network.

        Raises:
            MissingDependencyError: Neither `dust3r` nor `mini_dust3r` can be imported.
            WeightsError: The weights cannot be loaded.
            InputError: Fewer than two views came.
        """
        return self.estimate_with(self.load_network(), scene)

    def load_network(self) -> torch.nn.Module:
        """Load DUSt3R's network; weights, which have a licence of their own, are not fetched."""
        network_class = _import("model").AsymmetricCroCo3DStereo
        try:
            return network_class.from_pretrained(self.weights, local_files_only=True).eval()
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise WeightsError(
                f"DUSt3R's weights could not be loaded from `{self.weights}` ({error}): put them "
                f"into Hugging Face's cache (`hf download {self.weights}`, non-commercial), or "
                "give a folder that holds config.json and model.safetensors."
            ) from error

    def estimate_with(self, network: torch.nn.Module, scene: Scene) -> PointCloud:
        """Run a network that is already loaded."""
        if len(scene) < 2:
            raise InputError("DUSt3R needs at least two views: one came; choose more views.")
        images, cameras = _prepare(scene, self.long_side)
        # The alignment's learning rate expects cameras about one unit apart.
        unit = float(torch.pdist(cameras.position).mean())
        if unit <= 0:
            raise InputError("DUSt3R needs views from different places: all stand at one point.")
        device = scene.images.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            optimiser = self._align(network.to(device), images, cameras, unit)
        xyz = torch.stack(list(optimiser.get_pts3d())).detach().to(device)
        # DUSt3R's own threshold is 3, and no confidence lies below 1.
        raw = torch.stack(list(optimiser.im_conf)).detach().to(device).clamp_min(1)
        xyz = self._to_world(xyz, optimiser, cameras, unit)
        num_views, height, width = raw.shape
        view = torch.arange(num_views, device=device).repeat_interleave(height * width)
        return PointCloud(
            xyz=xyz.reshape(-1, 3),
            rgb=images.permute(0, 2, 3, 1).reshape(-1, 3),
            confidence=((raw - 1) / (raw + 1)).reshape(-1),
            view=view,
        )

    def _align(
        self, network: torch.nn.Module, images: Tensor, cameras: Cameras, unit: float
    ) -> Any:
        """Predict all pairs and align them; return DUSt3R's optimiser."""
        views = [
            {
                "img": image[None] * 2 - 1,
                "true_shape": torch.tensor([image.shape[-2:]], dtype=torch.int32),
                "idx": i,
                "instance": str(i),
            }
            for i, image in enumerate(images)
        ]
        device = images.device.type
        pairs = _import("image_pairs").make_pairs(views, scene_graph="complete", symmetrize=True)
        result = _import("inference").inference(pairs, network, device, batch_size=1, verbose=False)
        align = _import("cloud_opt")
        optimiser = align.global_aligner(
            result,
            device=device,
            mode=align.GlobalAlignerMode.PointCloudOptimizer,
            optimize_pp=True,
            verbose=False,
        )
        if self.keep_cameras:
            _hold_cameras(optimiser, cameras, unit)
        else:
            centre = torch.tensor([cameras.width / 2, cameras.height / 2])
            optimiser.preset_principal_point([centre] * len(images))
        with torch.enable_grad():
            optimiser.compute_global_alignment(
                init="mst", niter=self.num_iterations, schedule="linear", lr=_LEARNING_RATE
            )
        return optimiser.clean_pointcloud()

    def _to_world(
        self, xyz: Tensor, optimiser: Any, cameras: Cameras, unit: float
    ) -> Float[Tensor, "V H W 3"]:
        if self.keep_cameras:
            return xyz * unit
        poses = optimiser.get_im_poses().detach().to(xyz)
        if not bool(torch.isfinite(poses).all()):
            raise InputError(
                "DUSt3R could not work out poses for these views: keep the known cameras, or "
                "choose views that overlap more."
            )
        return align_cameras(poses, cameras).apply(xyz)


def _import(name: str) -> ModuleType:
    for package in ("dust3r", "mini_dust3r"):
        try:
            return importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith(package):
                raise MissingDependencyError(
                    f"DUSt3R was found as `{package}` but it needs `{error.name}`: install it."
                ) from error
    raise MissingDependencyError(
        "The estimator `dust3r` needs DUSt3R, which is not installed: `pip install mini-dust3r` "
        "(non-commercial licence), or choose the estimator `plane-sweep`."
    )


def _hold_cameras(optimiser: Any, cameras: Cameras, unit: float) -> None:
    """Fix poses and intrinsics; DUSt3R's pixel centres lie at whole numbers."""
    poses = cameras.c2w.clone().cpu()
    poses[:, :3, 3] /= unit
    K = cameras.K.cpu()
    optimiser.preset_pose(list(poses))
    optimiser.preset_focal([float(f) for f in K[:, :2, :2].diagonal(dim1=1, dim2=2).mean(dim=1)])
    optimiser.preset_principal_point(list(K[:, :2, 2] - 0.5))


def _prepare(scene: Scene, long_side: int) -> tuple[Float[Tensor, "V 3 H W"], Cameras]:
    """Reduce to square pixels and crop to whole patches around the centre; cameras follow."""
    K = scene.cameras.K
    height, width = scene.cameras.height, scene.cameras.width
    aspect = float((K[:, 1, 1] / K[:, 0, 0]).median())  # makes fx = fy when applied to columns
    scale = long_side / max(height, width * aspect)
    size = (round(height * scale), round(width * aspect * scale))
    crop = (size[0] // _PATCH * _PATCH, size[1] // _PATCH * _PATCH)
    if min(crop) == 0:
        raise InputError(f"Images of {height}x{width} are too small for DUSt3R at {long_side} px.")
    images = F.interpolate(
        scene.images, size, mode="bilinear", align_corners=False, antialias=True
    ).clamp(0, 1)
    cameras = scene.cameras.resize(*size)
    top, left = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
    K = cameras.K.clone()
    K[:, 0, 2] -= left
    K[:, 1, 2] -= top
    images = images[..., top : top + crop[0], left : left + crop[1]]
    return images, Cameras(c2w=cameras.c2w, K=K, height=crop[0], width=crop[1])

"""Splats fitted to dense captures: true-to-scene targets along smooth paths.

Between two real photos a scene rarely has sixteen others. Where a plain Gaussian fit to all its
photos shows held-out photos well, its renders stand in for them.
"""

import logging
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.distill.pack import PackedScene, encode_photo
from fvgen_recon.distill.pair import ClipPlan, Pair, PairPool, PathPlan, draw_inputs
from fvgen_recon.errors import InputError
from fvgen_recon.pointcloud.base import PointCloudEstimator
from fvgen_recon.pointcloud.plane_sweep import PlaneSweep
from fvgen_recon.render.gaussian import rasterize
from fvgen_recon.render.gaussian_relocation import compute_relocation
from fvgen_recon.trajectory.pose import move_cameras
from fvgen_recon.types import Cameras, PointCloud, Scene

_log = logging.getLogger(__name__)
_C0 = 0.28209479177387814
"""The constant spherical harmonic."""
_MAX_RATIO = 51


@dataclass(frozen=True, kw_only=True, slots=True)
class SplatConfig:
    """How a splat is fitted, and when it is good enough."""

    iterations: int = 1500
    """Training steps of a splat."""
    long_side: int = 352
    """Photos are fitted at this size."""
    max_gaussians: int = 120_000
    """Points beyond so many are thinned out before the fit."""
    group: int = 6
    """Neighbouring photos whose depth is estimated together."""
    min_photos: int = 20
    """Captures with fewer photos are not tried."""
    hold_out: int = 8
    """Every so manieth photo is kept for judging."""
    min_psnr: float = 23.0
    """Mean PSNR of those photos from which renders are used, after matching exposure."""
    min_alpha: float = 0.97
    """Mean opacity that every frame of a path must have."""
    relocate_every: int = 100
    """Iterations after which Gaussians that have become invisible are moved to visible ones."""


class Gaussians(NamedTuple):
    """Parameters before their activations."""

    means: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor
    colors: Tensor


_RATES = (3e-4, 8e-3, 2e-3, 4e-2, 4e-3)
"""Learning rates in the order of `Gaussians`; that of the means in extents of the capture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedSplat:
    """A splat of a scene and how well it shows photos that it was not fitted to."""

    gaussians: Gaussians
    psnr: float
    """Mean over the held-out photos."""

    def render(self, cameras: Cameras) -> tuple[Float[Tensor, "T 3 H W"], Float[Tensor, "T"]]:
        """Return images and their mean opacity."""
        images, alphas = [], []
        with torch.no_grad():
            for camera in cameras:
                image, alpha = _draw(self.gaussians, camera)
                images.append(image.clamp(0, 1))
                alphas.append(alpha.mean())
        return torch.stack(images), torch.stack(alphas)


def _draw(gaussians: Gaussians, camera: Cameras) -> tuple[Tensor, Tensor]:
    image, alpha, _ = rasterize(
        means=gaussians.means,
        quats=gaussians.quats,
        scales=gaussians.scales.exp(),
        opacities=torch.sigmoid(gaussians.opacities),
        colors=gaussians.colors,
        viewmats=camera.w2c[None],
        Ks=camera.K[None],
        width=camera.width,
        height=camera.height,
        sh_degree=1,
        packed=False,
    )
    return image[0].permute(2, 0, 1), alpha[0, ..., 0]


def _seed_cloud(scene: Scene, config: SplatConfig, estimator: PointCloudEstimator) -> PointCloud:
    """Estimate depth in groups of neighbouring photos, trusted or not, and thin the points."""
    clouds = []
    for start in range(0, len(scene), config.group):
        index = list(range(start, min(start + config.group, len(scene))))
        if len(index) < 2:
            continue
        part = Scene(
            images=scene.images[index],
            cameras=scene.cameras[index],
            names=tuple(scene.names[i] for i in index),
        )
        try:
            cloud = estimator.estimate(part)
        except InputError as error:
            _log.info("no depth for photos %d to %d: %s", index[0], index[-1], error)
            continue
        clouds.append(replace(cloud, view=torch.where(cloud.view < 0, -1, cloud.view + start)))
    if not clouds:
        raise InputError("No depth could be estimated between any photos of the capture.")
    return _thin([c[c.view >= 0] for c in clouds], config.max_gaussians)


def _thin(clouds: list[PointCloud], count: int) -> PointCloud:
    """Keep points at random, trusted ones eight times as often."""
    whole = PointCloud(
        xyz=torch.cat([c.xyz for c in clouds]),
        rgb=torch.cat([c.rgb for c in clouds]),
        confidence=torch.cat([c.confidence for c in clouds]),
        view=torch.cat([c.view for c in clouds]),
    )
    if len(whole) <= count:
        return whole
    weight = torch.where(whole.confidence >= 0.5, 1.0, 0.125)
    # Exponential clocks: the `count` first to ring are a weighted draw without replacement.
    rng = torch.Generator().manual_seed(0)
    ring = torch.empty(len(whole)).exponential_(generator=rng).to(weight.device) / weight
    return whole[ring.topk(count, largest=False).indices]


def _start(cloud: PointCloud, cameras: Cameras, spread: float) -> Gaussians:
    """One Gaussian a point, about as wide as its share of the photo that it came from."""
    view = cloud.view.long()
    distance = (cloud.xyz - cameras.position[view]).norm(dim=1)
    width = spread * distance / cameras.K[view, 0, 0]
    colors = torch.zeros(len(cloud), 4, 3, device=cloud.xyz.device)
    colors[:, 0] = (cloud.rgb - 0.5) / _C0
    trusted = cloud.confidence >= 0.5
    quats = torch.zeros(len(cloud), 4, device=cloud.xyz.device)
    quats[:, 0] = 1
    return Gaussians(
        means=cloud.xyz.clone(),
        scales=width.clamp_min(1e-9).log()[:, None].repeat(1, 3),
        quats=quats,
        opacities=torch.where(trusted, 1.0, -1.5),
        colors=colors,
    )


def _dissimilarity(first: Tensor, second: Tensor) -> Tensor:
    """1 - SSIM with square windows of 7 pixels."""
    stack = torch.cat([first, second, first * first, second * second, first * second])
    a, b, aa, bb, ab = F.avg_pool2d(stack[None], 7, 1)[0].chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * a * b + c1) * (2 * (ab - a * b) + c2)
    return 1 - (top / ((a * a + b * b + c1) * (aa - a * a + bb - b * b + c2))).mean()


def fit_splat(
    packed: PackedScene,
    config: SplatConfig,
    device: torch.device,
    estimator: PointCloudEstimator | None = None,
) -> FittedSplat:
    """Fit Gaussians to all photos of a scene but the held-out ones.

    Raises:
        InputError: The photos do not overlap enough for depth.
    """
    scale = config.long_side / max(packed.cameras.height, packed.cameras.width)
    size = (round(packed.cameras.height * scale), round(packed.cameras.width * scale))
    scene = packed.scene(range(len(packed)), *size).to(device)
    held = list(range(config.hold_out // 2, len(scene), config.hold_out))
    kept = [i for i in range(len(scene)) if i not in held]
    train = Scene(
        images=scene.images[kept],
        cameras=scene.cameras[kept],
        names=tuple(scene.names[i] for i in kept),
    )
    cloud = _seed_cloud(train, config, estimator or PlaneSweep())
    pixels = len(train) * size[0] * size[1]
    start = _start(cloud, train.cameras, 0.6 * math.sqrt(pixels / len(cloud) / 4))
    gaussians = _optimise(start, train, config)
    psnr = _judge(gaussians, scene, held)
    _log.info("%s: %d Gaussians, held-out PSNR %.2f", packed.name, len(cloud), psnr)
    return FittedSplat(gaussians=gaussians, psnr=psnr)


def _optimise(start: Gaussians, train: Scene, config: SplatConfig) -> Gaussians:
    params = [p.requires_grad_(True) for p in start]
    gaussians = Gaussians(*params)
    extent = float((train.cameras.position - train.cameras.position.mean(0)).norm(dim=1).max())
    rates = (_RATES[0] * max(extent, 1e-6), *_RATES[1:])
    exposure = torch.zeros(len(train), 3, 1, 1, device=start.means.device, requires_grad=True)
    groups = [{"params": [p], "lr": r} for p, r in zip(params, rates, strict=True)]
    groups.append({"params": [exposure], "lr": 2e-3})
    optimizer = torch.optim.Adam(groups, eps=1e-15)
    rng = torch.Generator().manual_seed(0)
    first = [g["lr"] for g in groups]
    for step in range(config.iterations):
        decay = 0.02 ** (step / config.iterations)
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = rate * decay
        index = int(torch.randint(len(train), (), generator=rng))
        image, _ = _draw(gaussians, train.cameras[index])
        image = image * exposure[index].exp()
        photo = train.images[index]
        loss = 0.8 * (image - photo).abs().mean() + 0.2 * _dissimilarity(image, photo)
        loss = loss + 0.01 * exposure.mean().square()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % config.relocate_every == 0 and step < 0.8 * config.iterations:
            _relocate(gaussians, optimizer, rng)
    return Gaussians(*(p.detach() for p in gaussians))


@torch.no_grad()
def _relocate(gaussians: Gaussians, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> None:
    """Move invisible Gaussians onto visible ones, which then look as before together."""
    opacity = torch.sigmoid(gaussians.opacities)
    dead = torch.nonzero(opacity < 0.01)[:, 0]
    if len(dead) == 0 or len(dead) == len(opacity):
        return
    chance = torch.where(opacity < 0.01, 0.0, opacity).cpu()
    onto = torch.multinomial(chance, len(dead), replacement=True, generator=rng).to(dead.device)
    ratios = torch.bincount(onto, minlength=len(opacity))[onto] + 1
    binoms = torch.tensor(
        [[math.comb(n, k) if k <= n else 0 for k in range(_MAX_RATIO)] for n in range(_MAX_RATIO)],
        dtype=torch.float32,
        device=dead.device,
    )
    shared, scales = compute_relocation(
        opacity[onto],
        gaussians.scales[onto].exp(),
        ratios.clamp(max=_MAX_RATIO).int(),
        binoms,
    )
    gaussians.opacities[onto] = torch.logit(shared.clamp(0.005, 0.999))
    gaussians.scales[onto] = scales.log()
    for value in gaussians:
        value[dead] = value[onto]
        state = optimizer.state.get(value, {})
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name][dead] = 0
                state[name][onto] = 0


@torch.no_grad()
def _judge(gaussians: Gaussians, scene: Scene, held: list[int]) -> float:
    """Mean PSNR over held-out photos after the best gain of each channel."""
    values = []
    for index in held:
        image = _draw(gaussians, scene.cameras[index])[0].clamp(0, 1)
        photo = scene.images[index]
        top, bottom = (image * photo).sum((1, 2)), (image * image).sum((1, 2)).clamp_min(1e-6)
        error = (image * (top / bottom)[:, None, None]).clamp(0, 1) - photo
        values.append(-10 * error.square().mean().clamp_min(1e-10).log10())
    return float(torch.stack(values).mean())


def splat_plans(
    packed: PackedScene,
    splat: FittedSplat,
    pairs: list[Pair],
    *,
    num_frames: int,
    min_alpha: float,
    rng: torch.Generator,
    device: torch.device,
) -> tuple[PackedScene, list[ClipPlan]]:
    """Plan a clip between the photos of each pair, with renders at all frames but the ends.

    Args:
        packed: The scene.
        splat: What was fitted to it.
        pairs: The ends, and the extra inputs to draw from.
        num_frames: Frames of a clip.
        min_alpha: Mean opacity below which a render shows too much that no photo does.
        rng: Draws inputs.
        device: Where the splat lies.

    Returns:
        The scene with the renders added as further photos, and the plans.
    """
    jpegs, names = list(packed.jpegs), list(packed.photo_names)
    poses, lenses, plans = [packed.cameras.c2w], [packed.cameras.K], []
    for pair in pairs:
        ends = packed.cameras[pair.first], packed.cameras[pair.last]
        share = torch.linspace(0, 1, num_frames)
        way = move_cameras(*ends, share)[1:-1]
        images, alpha = splat.render(way.to(device))
        if float(alpha.min()) < min_alpha:
            continue
        base = len(jpegs)
        jpegs += [encode_photo(image, 95) for image in images.cpu()]
        names += [f"render-{base + i}.jpg" for i in range(len(way))]
        poses.append(way.c2w)
        lenses.append(way.K)
        inner = tuple(range(base, base + len(way)))
        path = PathPlan(pair=pair, ends=(0, 1), frames=(pair.first, *inner, pair.last))
        plans.append(ClipPlan(scene=0, inputs=draw_inputs(pair, rng), paths=(path,)))
    grown = PackedScene(
        name=f"{packed.name}-splat",
        photo_names=tuple(names),
        jpegs=tuple(jpegs),
        cameras=replace(packed.cameras, c2w=torch.cat(poses), K=torch.cat(lenses)),
        depth=torch.cat([packed.depth, packed.depth.new_zeros(len(jpegs) - len(packed))]),
    )
    return grown, plans


class SplatSource:
    """Fits a splat to one capture after another and plans clips on its renders."""

    def __init__(
        self,
        pool: PairPool,
        config: SplatConfig,
        *,
        num_frames: int,
        num_plans: float,
        device: torch.device,
        chunk: int = 8,
    ) -> None:
        """Line up the captures of a pool that have enough photos.

        Args:
            pool: Scenes and their pairs.
            config: How splats are fitted, and which are good enough.
            num_frames: Frames of a clip.
            num_plans: Plans wanted in all, spread evenly over the captures.
            device: Where to compute.
            chunk: Plans of a batch.
        """
        self.pool, self.config, self.device = pool, config, device
        self.num_frames, self.chunk = num_frames, chunk
        self.waiting = [
            i
            for i, (scene, bins) in enumerate(zip(pool.scenes, pool.bins, strict=True))
            if len(scene) >= config.min_photos and any(bins)
        ]
        self.quota = math.ceil(num_plans / max(1, len(self.waiting)))
        self.splat: FittedSplat | None = None
        self.left = 0
        self.scene = 0

    def batch(self, index: int, rng: torch.Generator) -> tuple[list[PackedScene], list[ClipPlan]]:
        """Return some plans about one capture; none when no capture is left."""
        while self.left > 0 or self._advance():
            count = min(self.chunk, self.left)
            self.left -= count
            assert self.splat is not None
            pairs = self.pool.draw_pairs(self.scene, count, rng)
            packed = self.pool.scenes[self.scene]
            grown, plans = splat_plans(
                packed,
                self.splat,
                pairs,
                num_frames=self.num_frames,
                min_alpha=self.config.min_alpha,
                rng=rng,
                device=self.device,
            )
            if plans:
                return [grown], plans
        return [], []

    def _advance(self) -> bool:
        """Fit the next capture that comes out well; false where there is none."""
        while self.waiting:
            self.scene = self.waiting.pop(0)
            packed = self.pool.scenes[self.scene]
            try:
                splat = fit_splat(packed, self.config, self.device)
            except InputError as error:
                _log.warning("no splat of %s: %s", packed.name, error)
                continue
            if splat.psnr >= self.config.min_psnr:
                self.splat, self.left = splat, self.quota
                return True
            _log.info("splat of %s is not used: %.2f dB", packed.name, splat.psnr)
        return False

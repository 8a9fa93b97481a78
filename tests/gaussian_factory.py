"""Small random Gaussians before small cameras, for tests of the rasterisers."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from factories import make_cameras
from torch import Tensor

from fvgen_recon.render.gaussian import rasterize
from fvgen_recon.render.gaussian_cpu import Look, Splats
from fvgen_recon.render.gaussian_reference import ReferenceRender, rasterize_reference

SPLAT_NAMES = ("means", "quats", "scales", "opacities", "colors")


@dataclass(frozen=True, kw_only=True)
class SplatScene:
    """Everything differentiable that goes into a rasteriser, and the intrinsics."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    backgrounds: Tensor
    Ks: Tensor
    width: int
    height: int

    def leaves(self) -> dict[str, Tensor]:
        """The differentiable tensors by name."""
        names = (*SPLAT_NAMES, "viewmats", "backgrounds")
        return {name: getattr(self, name) for name in names}

    def fresh(self, **to: Any) -> "SplatScene":
        """Copy all tensors, as new leaves, with the arguments of `Tensor.to`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {k: v.detach().clone().to(**to) for k, v in values.items() if torch.is_tensor(v)}
        for name in self.leaves():
            tensors[name].requires_grad_()
        return replace(self, **tensors)


def make_splat_scene(
    num_splats: int = 40,
    num_cameras: int = 2,
    *,
    height: int = 33,
    width: int = 45,
    size: float = 0.2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> SplatScene:
    """Gaussians around the origin, before and beside cameras that look at it.

    Shapes are elongated, quaternions of any length, some Gaussians lie outside the images, and the
    cameras' centres of projection are off the middle.
    """
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    cameras = make_cameras(num_cameras, height, width)
    Ks = cameras.K.double() + torch.tensor([[0, 0, -1.3], [0, 2.1, 0.7], [0, 0, 0]]).double()
    scene = SplatScene(
        means=draw(num_splats, 3) * torch.tensor([1.6, 1.0, 1.4]),
        quats=2 * draw(num_splats, 4),
        scales=size * torch.exp(0.7 * draw(num_splats, 3)),
        opacities=torch.sigmoid(1.5 * draw(num_splats)),
        colors=0.4 * draw(num_splats, 16, 3),
        viewmats=cameras.w2c,
        backgrounds=torch.rand(num_cameras, 3, generator=rng),
        Ks=Ks,
        width=width,
        height=height,
    )
    return scene.fresh(dtype=dtype)


def run_fast(scene: SplatScene, **options: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Rasterise with the function under test; centres keep their gradient."""
    settings = {"sh_degree": 3, "packed": False, "absgrad": True, **options}
    settings.setdefault("backgrounds", scene.backgrounds)
    splats = (getattr(scene, name) for name in SPLAT_NAMES)
    result = rasterize(*splats, scene.viewmats, scene.Ks, scene.width, scene.height, **settings)
    if result[2]["means2d"].requires_grad:
        result[2]["means2d"].retain_grad()
    return result


def run_reference(scene: SplatScene, **options: Any) -> ReferenceRender:
    """Rasterise with the slow twin; centres keep their gradient."""
    settings = {"sh_degree": 3, "backgrounds": scene.backgrounds, **options}
    look = Look(
        width=scene.width,
        height=scene.height,
        near_plane=settings.get("near_plane", 0.01),
        far_plane=settings.get("far_plane", 1e10),
        radius_clip=settings.get("radius_clip", 0.0),
        eps2d=settings.get("eps2d", 0.3),
        sh_degree=settings["sh_degree"],
        packed=False,
        tile_size=settings.get("tile_size", 16),
        render_mode=settings.get("render_mode", "RGB"),
        absgrad=True,
        is_antialiased=settings.get("rasterize_mode", "classic") == "antialiased",
    )
    splats = Splats(**{name: getattr(scene, name) for name in SPLAT_NAMES})
    render = rasterize_reference(splats, scene.viewmats, scene.Ks, settings["backgrounds"], look)
    if render.means2d.requires_grad:
        render.means2d.retain_grad()
    return render


def random_loss(colors: Tensor, alphas: Tensor, seed: int = 7) -> Tensor:
    """A loss that weighs every number of a render differently."""
    rng = torch.Generator().manual_seed(seed)
    weights = [torch.randn(t.shape, generator=rng, dtype=torch.float64) for t in (colors, alphas)]
    pairs = zip(weights, (colors, alphas), strict=True)
    return sum((w.to(t) * t).sum() for w, t in pairs)  # type: ignore[return-value]

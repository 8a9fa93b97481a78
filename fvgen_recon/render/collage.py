"""Collages: random solids covered with photos, ray traced with exact depth, many at a time.

Made to train stereo on. Photos as textures look like the real world, and since every ray meets
every solid in one tensor operation, thousands of scenes cost little on a GPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fvgen_recon.geometry.projection import camera_rays
from fvgen_recon.geometry.rigid import look_at, normalise
from fvgen_recon.render.procedural import ProceduralRender
from fvgen_recon.types import Cameras

_FAR = 1e6
_NEAR = 0.05
_TEXELS = 256
_LEVELS = 5
# Of the largest tensors; one view at a time stays in a CPU's cache.
_VALUES_CUDA, _VALUES_ELSEWHERE = 2**27, 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TextureAtlas:
    """Square textures with their halvings, in one row of texels."""

    texels: Float[Tensor, "P 3"]
    """Colours in [0, 1]: of all textures at full size, then at half size, and so on."""
    count: int
    """Number of textures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collage:
    """K ellipsoids and boxes; the first is a box around everything, seen from inside."""

    is_round: Bool[Tensor, "K"]
    """True for ellipsoids."""
    centre: Float[Tensor, "K 3"]
    """World positions."""
    rotation: Float[Tensor, "K 3 3"]
    """Object-to-world rotations."""
    size: Float[Tensor, "K 3"]
    """Half axes or half sides."""
    texture: Int[Tensor, "K"]
    """Texture of each solid."""
    texture_side: Float[Tensor, "K"]
    """World length that a texture covers; it is mirrored beyond."""
    gain: Float[Tensor, "K"]
    """Contrast of the texture around its mean, 1 as photographed."""
    gloss: Float[Tensor, "K"]
    """Strength of a highlight that moves with the viewer."""
    light: Float[Tensor, "3"]
    """Unit direction towards the light."""


def build_atlas(textures: Float[Tensor, "M 3 S S"]) -> TextureAtlas:
    """Store textures of 256 texels a side with their halvings."""
    assert textures.shape[-1] == textures.shape[-2] == _TEXELS
    levels = [textures]
    for _ in range(_LEVELS - 1):
        levels.append(F.avg_pool2d(levels[-1], 2))
    flat = [level.permute(0, 2, 3, 1).reshape(-1, 3) for level in levels]
    return TextureAtlas(texels=torch.cat(flat), count=textures.shape[0])


def random_collage(rng: torch.Generator, num_textures: int) -> Collage:
    """Draw a room of some 6 to 14 units with 6 to 18 solids and boards around its centre."""

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=rng)

    count = int(torch.randint(7, 19, (1,), generator=rng))
    size = uniform(count, 3, low=0.15, high=0.9) * uniform(count, 1, low=0.5, high=1.2)
    thin = uniform(count) < 0.3
    size[thin, 2] = 0.02
    centre = uniform(count, 3, low=-1.6, high=1.6)
    centre[:, 1] *= 0.6
    axis = torch.randn(count, 3, generator=rng)
    upright = uniform(count) < 0.6
    axis[upright] = torch.tensor([0.0, 1.0, 0.0])
    rotation = _turn(axis, uniform(count, high=math.pi))
    size[0] = uniform(3, low=5.0, high=9.0)
    size[0, 1] = float(uniform(1, low=4.8, high=8.0))
    centre[0], rotation[0] = uniform(3, low=-0.5, high=0.5), torch.eye(3)
    if float(uniform(1)) < 0.7:  # a floor under the solids
        size[1] = torch.tensor([20.0, 0.3, 20.0])
        centre[1] = torch.tensor([0.0, 1.0 + 0.3 + 0.6 * float(uniform(1)), 0.0])
        rotation[1] = torch.eye(3)
        thin[1] = True
    return Collage(
        is_round=(uniform(count) < 0.4) & ~thin & (torch.arange(count) > 0),
        centre=centre,
        rotation=rotation,
        size=size,
        texture=torch.randint(num_textures, (count,), generator=rng),
        texture_side=torch.where(
            torch.arange(count) < 2,
            uniform(count, low=2.0, high=7.0),
            uniform(count, low=0.6, high=3.0),
        ),
        gain=torch.where(uniform(count) < 0.2, uniform(count, high=0.3), uniform(count, low=0.5)),
        gloss=torch.where(uniform(count) < 0.25, uniform(count, high=0.5), torch.zeros(count)),
        light=normalise(torch.randn(3, generator=rng) + torch.tensor([0.0, -1.0, 0.0])),
    )


def _turn(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotations by angles about axes."""
    x, y, z = normalise(axis).unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(skew * angle[:, None, None])


def random_arc(
    rng: torch.Generator, num_views: int, *, height: int, width: int, max_gap_deg: float = 45.0
) -> Cameras:
    """Draw cameras on an uneven arc around the centre, gaps of 3 degrees and more."""

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=rng)

    gap = float(uniform(1, low=3.0, high=max_gap_deg))
    azimuth = torch.cumsum(gap * uniform(num_views, low=0.6, high=1.0), 0)
    azimuth = torch.deg2rad(azimuth + float(uniform(1, low=0.0, high=360.0)))
    lift = float(uniform(1, low=-0.1, high=0.5)) + uniform(num_views, low=-0.5, high=0.5) * gap / 60
    distance = float(uniform(1, low=2.6, high=4.3)) * uniform(num_views, low=0.9, high=1.05)
    offset = torch.stack([azimuth.sin(), -lift.sin(), -azimuth.cos()], dim=-1)
    target = 0.5 * torch.randn(3, generator=rng) * torch.tensor([1.0, 0.4, 1.0])
    aim = target + 0.15 * torch.randn(num_views, 3, generator=rng)
    up = torch.tensor([0.0, -1.0, 0.0]) + 0.08 * torch.randn(3, generator=rng)
    c2w = look_at(distance[:, None] * normalise(offset), aim, up)
    fov = float(uniform(1, low=38.0, high=75.0))
    focal = 0.5 * max(height, width) / math.tan(math.radians(fov) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return Cameras(c2w=c2w, K=K.expand(num_views, 3, 3).clone(), height=height, width=width)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Solids:
    """The solids that each view can see, filled up to equally many."""

    exists: Bool[Tensor, "V K"]
    is_round: Bool[Tensor, "V K"]
    centre: Float[Tensor, "V K 3"]
    rotation: Float[Tensor, "V K 3 3"]
    size: Float[Tensor, "V K 3"]
    texture: Int[Tensor, "V K"]
    texture_side: Float[Tensor, "V K"]
    gain: Float[Tensor, "V K"]
    gloss: Float[Tensor, "V K"]
    light: Float[Tensor, "V 3"]

    def take(self, views: Int[Tensor, "V2"] | slice) -> "_Solids":
        """Return those of some views."""
        return _Solids(**{f.name: getattr(self, f.name)[views] for f in fields(self)})

    def to(self, device: torch.device) -> "_Solids":
        """Move the tensors to a device."""
        return _Solids(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def _stack_collages(collages: Sequence[Collage]) -> _Solids:
    """One row a collage; what is filled up exists nowhere."""
    names = [f.name for f in fields(Collage) if f.name != "light"]
    stacked = {
        n: pad_sequence([getattr(c, n) for c in collages], batch_first=True, padding_value=1)
        for n in names
    }
    exists = pad_sequence([torch.ones_like(c.is_round) for c in collages], batch_first=True)
    return _Solids(exists=exists, light=torch.stack([c.light for c in collages]), **stacked)


def _hits(
    solids: _Solids, eyes: Float[Tensor, "V 3"], rays: Float[Tensor, "V P 3"]
) -> Float[Tensor, "V P K"]:
    """Ray parameter of each ray's first hit with each solid."""
    to_local = solids.rotation / solids.size[..., None, :]  # columns are the scaled axes
    origin = torch.einsum("vki,vkij->vkj", eyes[:, None] - solids.centre, to_local)[:, None]
    ray = torch.einsum("vpi,vkij->vpkj", rays, to_local)
    a, b = ray.square().sum(-1), (ray * origin).sum(-1)
    root = b.square() - a * (origin.square().sum(-1) - 1)
    ball = (-b - root.clamp_min(0).sqrt()) / a
    ball = torch.where((root > 0) & (ball > _NEAR), ball, _FAR)
    inverse = 1 / torch.where(ray.abs() < 1e-9, torch.full_like(ray, 1e-9), ray)
    first, second = (-1 - origin) * inverse, (1 - origin) * inverse
    enter = torch.minimum(first, second).amax(-1)
    leave = torch.maximum(first, second).amin(-1)
    box = torch.where((leave > enter) & (enter > _NEAR), enter, _FAR)
    hit = torch.where(solids.is_round[:, None], ball, box)
    hit[..., 0] = leave[..., 0]
    return hit.masked_fill(~solids.exists[:, None], _FAR)


def _read_texels(
    atlas: TextureAtlas, texture: Tensor, place: Float[Tensor, "P 2"], level: Int[Tensor, "P"]
) -> Float[Tensor, "P 3"]:
    """Read textures between their texels, mirrored outside [0, 1]."""
    side = _TEXELS >> level
    start = atlas.count * torch.tensor(
        [sum((_TEXELS >> k) ** 2 for k in range(n)) for n in range(_LEVELS)], device=place.device
    )
    start = start[level] + texture * side * side
    folded = 1 - (place.remainder(2) - 1).abs()
    at = folded * side[:, None] - 0.5
    base = at.floor()
    share = at - base
    colour = torch.zeros(len(place), 3, device=place.device)
    for corner in range(4):
        step = torch.tensor([corner & 1, corner >> 1], device=place.device)
        cell = (base.long() + step).clamp_min(0).minimum(side[:, None] - 1)
        weight = torch.where(step.bool(), share, 1 - share).prod(-1)
        texel = start + cell[:, 1] * side + cell[:, 0]
        colour = colour + weight[:, None] * atlas.texels[texel]
    return colour


def _colours(
    solids: _Solids, atlas: TextureAtlas, cameras: Cameras, rays: Float[Tensor, "V P 3"]
) -> Float[Tensor, "V P 3"]:
    eyes = cameras.position
    depth, which = _hits(solids, eyes, rays).min(dim=-1)
    views = torch.arange(len(cameras), device=rays.device)[:, None]

    def seen(values: Tensor) -> Tensor:
        return values[views, which]

    point = eyes[:, None] + depth[..., None] * rays
    rotation, size = seen(solids.rotation), seen(solids.size)
    local = torch.einsum("vpi,vpij->vpj", point - seen(solids.centre), rotation)
    unit = local / size
    axis = unit.abs().argmax(dim=-1)
    flat = F.one_hot(axis, 3).float() * unit.sign()
    normal = torch.where(seen(solids.is_round)[..., None], unit / size, flat)
    normal = normalise(torch.einsum("vpj,vpij->vpi", normal, rotation))
    others = torch.tensor([[1, 2], [0, 2], [0, 1]], device=rays.device)[axis]
    side = seen(solids.texture_side)
    place = local.gather(-1, others) / side[..., None] + 0.37 * which[..., None]
    footprint = depth / cameras.K[:, None, 0, 0] / side * _TEXELS
    level = footprint.clamp_min(1e-3).log2().round().clamp(0, _LEVELS - 1).long()
    texture = seen(solids.texture)
    colour = _read_texels(atlas, texture.flatten(), place.flatten(0, 1), level.flatten())
    colour = 0.5 + (colour.view_as(rays) - 0.5) * seen(solids.gain)[..., None]
    sight = normalise(rays)
    facing = -(normal * sight).sum(-1, keepdim=True)
    normal = normal * torch.where(facing < 0, -1.0, 1.0)
    light = solids.light[:, None]
    shade = 0.55 + 0.45 * (normal * light).sum(-1, keepdim=True).clamp_min(0)
    mirrored = sight - 2 * (sight * normal).sum(-1, keepdim=True) * normal
    shine = (mirrored * light).sum(-1, keepdim=True).clamp_min(0) ** 12
    return (colour * shade + seen(solids.gloss)[..., None] * shine).clamp(0, 1)


def render_collage(
    collage: Collage, atlas: TextureAtlas, cameras: Cameras, *, supersample: int = 2
) -> ProceduralRender:
    """Photograph a collage.

    Args:
        collage: What to photograph.
        atlas: Its textures; the photos come on their device.
        cameras: V cameras inside the outer box.
        supersample: Rays a pixel side for the colours; depth is taken at pixel centres.
    """
    return render_collages([collage], atlas, [cameras], supersample=supersample)[0]


def render_collages(
    collages: Sequence[Collage],
    atlas: TextureAtlas,
    cameras: Sequence[Cameras],
    *,
    supersample: int = 2,
) -> list[ProceduralRender]:
    """Photograph several collages at once, each with cameras of its own, all of one size.

    On a GPU many views share each operation, since launching these takes longer than doing them.
    """
    device = atlas.texels.device
    counts = [len(c) for c in cameras]
    index = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)])
    solids = _stack_collages(collages).take(index).to(device)
    together = _join_cameras(cameras).to(device)
    rays = together.height * together.width * supersample**2
    limit = _VALUES_CUDA if device.type == "cuda" else _VALUES_ELSEWHERE
    chunk = max(1, limit // (3 * rays * solids.exists.shape[1]))
    parts = [
        _photograph(solids.take(part), atlas, together[part], supersample)
        for part in (slice(i, i + chunk) for i in range(0, len(together), chunk))
    ]
    images, depths = (torch.cat(p).split(counts) for p in zip(*parts, strict=True))
    return [ProceduralRender(images=i, depth=d) for i, d in zip(images, depths, strict=True)]


def _join_cameras(cameras: Sequence[Cameras]) -> Cameras:
    return Cameras(
        c2w=torch.cat([c.c2w for c in cameras]),
        K=torch.cat([c.K for c in cameras]),
        height=cameras[0].height,
        width=cameras[0].width,
    )


def _photograph(
    solids: _Solids, atlas: TextureAtlas, cameras: Cameras, supersample: int
) -> tuple[Float[Tensor, "V 3 H W"], Float[Tensor, "V H W"]]:
    """Colours and depths of views, each of its own row of solids."""
    size = (cameras.height, cameras.width)
    fine = cameras.resize(size[0] * supersample, size[1] * supersample)
    colour = _colours(solids, atlas, fine, camera_rays(fine).flatten(1, 2))
    colour = colour.mT.unflatten(2, (fine.height, fine.width))
    hits = _hits(solids, cameras.position, camera_rays(cameras).flatten(1, 2))
    return F.avg_pool2d(colour, supersample), hits.amin(dim=-1).unflatten(1, size)

"""Solids of a procedural world, many at a time, and where rays meet them.

Every solid is a unit shape moved by a rotation and three half sizes; rays are taken into its own
space, where distances along the ray stay what they are. Geometry is worked out without matrix
products, so that lowered precision of those (TF32) cannot reach it.
"""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fvgen_recon.geometry.rigid import normalise

BOX, ELLIPSOID, FRUSTUM, POLYTOPE = range(4)
"""Kinds: box, ellipsoid, tapered cylinder along y, convex body of `NUM_PLANES` planes."""
NUM_PLANES = 12
"""Planes of a polytope."""
FAR = 1e6
"""Distance that stands for no hit."""
_NEAR = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """Solids with what their surfaces look like, sorted by kind."""

    kind: Int[Tensor, "O"]
    """One of `BOX`, `ELLIPSOID`, `FRUSTUM`, `POLYTOPE`."""
    centre: Float[Tensor, "O 3"]
    """World positions."""
    rotation: Float[Tensor, "O 3 3"]
    """Object-to-world rotations."""
    size: Float[Tensor, "O 3"]
    """Half sizes along the own axes, world units."""
    taper: Float[Tensor, "O"]
    """A frustum's radius is 1 + taper * y in its own space, with y from -1 to 1."""
    planes: Float[Tensor, "O K 4"]
    """A polytope's outward unit normals and distances from its centre, own space."""
    texture: Int[Tensor, "O"]
    """Index of the texture in the world's atlas."""
    uv_scale: Float[Tensor, "O 2"]
    """Repeats of the texture a world unit."""
    uv_shift: Float[Tensor, "O 2"]
    """Shift of the texture in repeats."""
    tint: Float[Tensor, "O 3"]
    """Factor of the texture's colours."""
    gloss: Float[Tensor, "O"]
    """Strength of the highlight."""
    glow: Float[Tensor, "O"]
    """Light that the surface gives of itself, as a factor of its colour."""

    def __len__(self) -> int:
        """Number of solids."""
        return self.kind.shape[0]

    def __getitem__(self, index: Tensor) -> "Shapes":
        """Select solids by an index or a mask."""
        return Shapes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> "Shapes":
        """Move the tensors to a device."""
        return Shapes(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @property
    def radius(self) -> Float[Tensor, "O"]:
        """Radius of a ball around the centre that holds the solid."""
        whole = self.size.norm(dim=-1) * (1 + self.taper.abs())
        return torch.where(self.kind == ELLIPSOID, self.size.amax(-1), whole)


class Surface(NamedTuple):
    """Where rays met solids."""

    normal: Float[Tensor, "P 3"]
    """Outward unit normals."""
    uv: Float[Tensor, "P 2"]
    """Texture coordinates in repeats."""


def sort_shapes(shapes: Shapes) -> Shapes:
    """Order solids by kind, which `first_hit` needs."""
    return shapes[shapes.kind.argsort(stable=True)]


def first_hit(
    shapes: Shapes, origin: Float[Tensor, "#P 3"], ray: Float[Tensor, "#P 3"]
) -> tuple[Float[Tensor, "P"], Int[Tensor, "P"]]:
    """Return the distance (in lengths of the ray) to the nearest solid, and which it is.

    Rays that start inside a solid do not see it. Where nothing is hit the distance is `FAR`.
    """
    count = max(origin.shape[0], ray.shape[0])
    best = origin.new_full((count,), FAR)
    which = torch.zeros(count, dtype=torch.long, device=origin.device)
    bounds = torch.bincount(shapes.kind, minlength=4).cumsum(0).tolist()
    for kind, (low, high) in enumerate(zip([0, *bounds], bounds, strict=False)):
        if high == low:
            continue
        part = shapes[torch.arange(low, high, device=origin.device)]
        start, step = _to_local(part, origin, ray)
        distance, index = _HITS[kind](part, start, step).min(0)
        nearer = distance < best
        best = torch.where(nearer, distance, best)
        which = torch.where(nearer, index + low, which)
    return best, which


def _to_local(shapes: Shapes, origin: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
    """Take rays into the solids' own spaces: start and step, each `3 O P`."""
    inverse = shapes.rotation.mT / shapes.size[:, :, None]
    moved = [origin[None, :, k] - shapes.centre[:, None, k] for k in range(3)]
    rows = [inverse[:, i, :, None].unbind(1) for i in range(3)]
    start = [a * moved[0] + b * moved[1] + c * moved[2] for a, b, c in rows]
    step = [a * ray[:, 0] + b * ray[:, 1] + c * ray[:, 2] for a, b, c in rows]
    return torch.stack(start), torch.stack(step)


def _safe(value: Tensor) -> Tensor:
    tiny = torch.where(value < 0, -1e-9, 1e-9)
    return torch.where(value.abs() < 1e-9, tiny, value)


def _hit_box(shapes: Shapes, start: Tensor, step: Tensor) -> Tensor:
    """Slab method."""
    inverse = 1 / _safe(step)
    first, second = (-1 - start) * inverse, (1 - start) * inverse
    enter = torch.minimum(first, second).amax(0)
    leave = torch.maximum(first, second).amin(0)
    return torch.where((leave > enter) & (enter > _NEAR), enter, FAR)


def _nearest_point(start: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the start to the ray's point nearest the centre, for the sake of digits."""
    squared = (step * step).sum(0)
    shift = -(start * step).sum(0) / squared
    return start + shift * step, shift, squared


def _hit_ellipsoid(shapes: Shapes, start: Tensor, step: Tensor) -> Tensor:
    near, shift, squared = _nearest_point(start, step)
    inside = 1 - (near * near).sum(0)
    distance = shift - (inside.clamp_min(0) / squared).sqrt()
    return torch.where((inside > 0) & (distance > _NEAR), distance, FAR)


def _hit_frustum(shapes: Shapes, start: Tensor, step: Tensor) -> Tensor:
    """The mantle x^2 + z^2 = (1 + taper y)^2 and two lids."""
    near, shift, _ = _nearest_point(start, step)
    taper = shapes.taper[:, None]
    wide, slope = 1 + taper * near[1], taper * step[1]
    a = _safe(step[0] ** 2 + step[2] ** 2 - slope**2)
    b = near[0] * step[0] + near[2] * step[2] - wide * slope
    root = b * b - a * (near[0] ** 2 + near[2] ** 2 - wide * wide)
    half = root.clamp_min(0).sqrt()
    best = torch.full_like(root, FAR)
    for sign in (-1.0, 1.0):
        offset = (-b + sign * half) / a
        y = near[1] + offset * step[1]
        distance = offset + shift
        fine = (root > 0) & (y.abs() <= 1) & (1 + taper * y > 0) & (distance > _NEAR)
        best = torch.minimum(best, torch.where(fine, distance, FAR))
        lid = (sign - near[1]) / _safe(step[1])
        x, z = near[0] + lid * step[0], near[2] + lid * step[2]
        fine = (x * x + z * z <= (1 + sign * taper) ** 2) & (lid + shift > _NEAR)
        best = torch.minimum(best, torch.where(fine, lid + shift, FAR))
    return best


def _hit_polytope(shapes: Shapes, start: Tensor, step: Tensor) -> Tensor:
    """Slab method with one plane at a time."""
    enter, leave = torch.full_like(start[0], -FAR), torch.full_like(start[0], FAR)
    for normal in shapes.planes.unbind(1):
        x, y, z, height = (normal[:, k, None] for k in range(4))
        towards = _safe(x * step[0] + y * step[1] + z * step[2])
        distance = (height - (x * start[0] + y * start[1] + z * start[2])) / towards
        enter = torch.where(towards < 0, torch.maximum(enter, distance), enter)
        leave = torch.where(towards > 0, torch.minimum(leave, distance), leave)
    return torch.where((leave > enter) & (enter > _NEAR), enter, FAR)


_HITS = (_hit_box, _hit_ellipsoid, _hit_frustum, _hit_polytope)


def surface_at(shapes: Shapes, which: Int[Tensor, "P"], point: Float[Tensor, "P 3"]) -> Surface:
    """Return normals and texture coordinates at surface points of given solids."""
    kind, size = shapes.kind[which], shapes.size[which]
    rotation = shapes.rotation[which]
    metric = (rotation * (point - shapes.centre[which])[:, :, None]).sum(1)
    local = metric / size
    taper = shapes.taper[which]
    normal, uv = _box_face(local, metric)
    ball = kind == ELLIPSOID
    normal = torch.where(ball[:, None], local / size, normal)
    around = torch.atan2(local[:, 0], local[:, 2]) * size[:, [0, 2]].mean(1)
    up = torch.asin(local[:, 1].clamp(-1, 1)) * size[:, 1]
    uv = torch.where(ball[:, None], torch.stack([around, up], -1), uv)
    mantle = (kind == FRUSTUM) & (local[:, 1].abs() < 0.9999)
    slope = -taper * (1 + taper * local[:, 1])
    outward = torch.stack([local[:, 0], slope, local[:, 2]], -1) / size
    normal = torch.where(mantle[:, None], outward, normal)
    uv = torch.where(mantle[:, None], torch.stack([around, metric[:, 1]], -1), uv)
    lid = (kind == FRUSTUM) & ~mantle
    flat = torch.stack([0 * taper, local[:, 1].sign(), 0 * taper], -1)
    normal = torch.where(lid[:, None], flat, normal)
    uv = torch.where(lid[:, None], metric[:, [0, 2]], uv)
    if bool((kind == POLYTOPE).any()):
        facet = _facet(shapes.planes[which], local) / size
        faced = kind == POLYTOPE
        normal = torch.where(faced[:, None], facet, normal)
        uv = torch.where(faced[:, None], _planar(facet, metric), uv)
    uv = uv * shapes.uv_scale[which] + shapes.uv_shift[which]
    return Surface(normalise((rotation * normal[:, None]).sum(2)), uv)


def _box_face(local: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    axis = local.abs().argmax(-1, keepdim=True)
    normal = torch.zeros_like(local).scatter_(-1, axis, local.gather(-1, axis).sign())
    return normal, _planar(normal, metric)


def _planar(normal: Tensor, metric: Tensor) -> Tensor:
    """Texture coordinates along the two axes that a face looks across most."""
    axis = normal.abs().argmax(-1)
    x, y, z = metric.unbind(-1)
    u = torch.where(axis == 0, z, x)
    v = torch.where(axis == 1, z, y)
    # Faces of one solid should not show the same piece of texture.
    return torch.stack([u, v], -1) + 0.37 * axis[:, None]


def _facet(planes: Tensor, local: Tensor) -> Tensor:
    height = (planes[..., :3] * local[:, None]).sum(-1) - planes[..., 3]
    index = height.argmax(-1)[:, None, None].expand(-1, 1, 3)
    return planes[..., :3].gather(1, index)[:, 0]


def near_segment(
    shapes: Shapes, start: Float[Tensor, "3"], end: Float[Tensor, "3"], radius: float
) -> Bool[Tensor, "O"]:
    """Return which solids may come within a distance of a segment."""
    along = end - start
    share = ((shapes.centre - start) * along).sum(-1) / (along * along).sum().clamp_min(1e-12)
    nearest = start + share.clamp(0, 1)[:, None] * along
    return (shapes.centre - nearest).norm(dim=-1) <= shapes.radius + radius


def in_cone(
    shapes: Shapes, apex: Float[Tensor, "3"], axis: Float[Tensor, "3"], half_angle: float
) -> Bool[Tensor, "O"]:
    """Return which solids may be seen within an angle (radians) of an axis."""
    offset = shapes.centre - apex
    distance = offset.norm(dim=-1)
    angle = torch.arccos(((offset * axis).sum(-1) / distance.clamp_min(1e-9)).clamp(-1, 1))
    reach = torch.asin((shapes.radius / distance.clamp_min(1e-9)).clamp(max=1.0))
    return (distance <= shapes.radius) | (angle <= reach + half_angle)


def inside_any(shapes: Shapes, point: Float[Tensor, "P 3"], margin: float) -> Bool[Tensor, "P"]:
    """Return which points lie within a margin of some solid's bounding box."""
    offset = point[:, None] - shapes.centre
    local = (shapes.rotation[None] * offset[..., None]).sum(2).abs()
    grown = shapes.size * torch.stack(
        [1 + shapes.taper.abs(), torch.ones_like(shapes.taper), 1 + shapes.taper.abs()], -1
    )
    return (local < grown + margin).all(-1).any(-1)


def move_shapes(shapes: Shapes, yaw: Float[Tensor, "3 3"], shift: Float[Tensor, "3"]) -> Shapes:
    """Turn solids about the origin, then shift them."""
    turned = (yaw * shapes.centre[:, None]).sum(-1)
    rotation = (yaw[None, :, :, None] * shapes.rotation[:, None]).sum(2)
    return replace(shapes, centre=turned + shift, rotation=rotation)


def join_shapes(parts: list[Shapes]) -> Shapes:
    """Concatenate solids."""
    names = [f.name for f in fields(Shapes)]
    return Shapes(**{n: torch.cat([getattr(p, n) for p in parts]) for n in names})

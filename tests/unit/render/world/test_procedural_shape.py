"""Rays meet solids where geometry says, and surfaces know their normals."""

import math

import torch

from fvgen_recon.render.world.shape import (
    BOX,
    ELLIPSOID,
    FAR,
    FRUSTUM,
    NUM_PLANES,
    POLYTOPE,
    Shapes,
    first_hit,
    in_cone,
    inside_any,
    near_segment,
    sort_shapes,
    surface_at,
)
from fvgen_recon.render.world.world import yaw_rotation


def make_shapes(kinds: list[int], *, taper: float = 0.0, yaw: float = 0.0) -> Shapes:
    """Solids of half sizes (1, 2, 0.5) in a row along x, 10 apart."""
    count = len(kinds)
    planes = torch.zeros(count, NUM_PLANES, 4)
    planes[..., :3] = torch.cat([torch.eye(3), -torch.eye(3)]).repeat(2, 1)
    planes[..., 3] = 1.0
    centre = torch.zeros(count, 3)
    centre[:, 0] = 10.0 * torch.arange(count)
    return Shapes(
        kind=torch.tensor(kinds),
        centre=centre,
        rotation=yaw_rotation(yaw).expand(count, 3, 3).clone(),
        size=torch.tensor([1.0, 2.0, 0.5]).expand(count, 3).clone(),
        taper=torch.full((count,), taper),
        planes=planes,
        texture=torch.arange(count),
        uv_scale=torch.ones(count, 2),
        uv_shift=torch.zeros(count, 2),
        tint=torch.ones(count, 3),
        gloss=torch.zeros(count),
        glow=torch.zeros(count),
    )


def test_every_kind_is_hit_at_its_front() -> None:
    shapes = make_shapes([BOX, ELLIPSOID, FRUSTUM, POLYTOPE])
    for index in range(4):
        origin = torch.tensor([[10.0 * index, 0.0, -5.0]])
        distance, which = first_hit(shapes, origin, torch.tensor([[0.0, 0.0, 2.0]]))
        assert int(which) == index
        torch.testing.assert_close(distance, torch.tensor([2.25]))


def test_lids_and_mantle_of_a_cone_by_hand() -> None:
    shapes = make_shapes([FRUSTUM], taper=0.5)
    down, _ = first_hit(shapes, torch.tensor([[0.0, -5.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
    torch.testing.assert_close(down, torch.tensor([3.0]))
    # At y = 1 (half way down) the radius is 1 + 0.5 * 0.5, times the half size 1 along x.
    side, _ = first_hit(shapes, torch.tensor([[-5.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(side, torch.tensor([5.0 - 1.25]))
    # Beyond the upper lid's radius 0.5 a ray straight down meets the mantle, not the lid.
    slant, _ = first_hit(shapes, torch.tensor([[0.75, -5.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]))
    torch.testing.assert_close(slant, torch.tensor([4.0]))


def test_hits_lie_on_the_surface_of_turned_solids(rng: torch.Generator) -> None:
    """A polytope of six planes is the box, wherever rays come from."""
    box, body = make_shapes([BOX], yaw=0.7), make_shapes([POLYTOPE], yaw=0.7)
    origin = 6 * torch.nn.functional.normalize(torch.randn(500, 3, generator=rng), dim=1)
    ray = torch.randn(500, 3, generator=rng) - origin
    first, _ = first_hit(box, origin, ray)
    second, _ = first_hit(body, origin, ray)
    torch.testing.assert_close(first, second)
    hit = first < FAR
    assert 50 < int(hit.sum()) < 500
    point = (origin + first[:, None] * ray)[hit]
    local = (point @ yaw_rotation(0.7)) / torch.tensor([1.0, 2.0, 0.5])
    torch.testing.assert_close(local.abs().amax(1), torch.ones(len(local)))
    which = torch.zeros(len(local), dtype=torch.long)
    normals = surface_at(box, which, point).normal
    torch.testing.assert_close(normals, surface_at(body, which, point).normal)
    # Rays come from outside, so they meet faces that look towards them.
    assert bool(((normals * ray[hit]).sum(1) < 0).all())


def test_small_far_balls_keep_their_digits(rng: torch.Generator) -> None:
    shapes = make_shapes([ELLIPSOID])
    shapes.size[:] = 0.01
    origin = torch.tensor([[0.0, 0.0, -30.0]])
    ray = torch.nn.functional.pad(2e-4 * torch.randn(200, 2, generator=rng), (0, 1), value=1.0)
    distance, _ = first_hit(shapes, origin, ray)
    hit = distance < FAR
    radius = (origin + distance[:, None] * ray)[hit].norm(dim=1)
    assert int(hit.sum()) > 50
    torch.testing.assert_close(radius, torch.full_like(radius, 0.01), atol=2e-5, rtol=0)


def test_normals_are_the_surface_gradient() -> None:
    """Finite differences of hits around a point span the plane that the normal is upright on."""
    shapes = make_shapes([ELLIPSOID, FRUSTUM], taper=0.4, yaw=0.3)
    for index in range(2):
        origin = torch.tensor([[10.0 * index + 0.3, 0.4, -5.0]])
        rays = torch.tensor([[0.0, 0.0, 1.0], [1e-2, 0.0, 1.0], [0.0, 1e-2, 1.0]])
        distance, which = first_hit(shapes, origin, rays)
        point = origin + distance[:, None] * rays
        normal = surface_at(shapes, which[:1], point[:1]).normal[0]
        for edge in point[1:] - point[0]:
            assert abs(float(normal @ edge) / float(edge.norm())) < 0.05


def test_culling_never_drops_what_is_hit(rng: torch.Generator) -> None:
    shapes = sort_shapes(make_shapes([FRUSTUM, BOX, ELLIPSOID, POLYTOPE] * 5, taper=0.3))
    apex = torch.tensor([45.0, 0.0, -30.0])
    axis = torch.nn.functional.normalize(torch.tensor([0.2, 0.0, 1.0]), dim=0)
    rays = axis + 0.15 * torch.randn(400, 3, generator=rng)
    unit = torch.nn.functional.normalize(rays, dim=1)
    angle = float(torch.arccos((unit @ axis).clamp(-1, 1)).amax())
    kept = shapes[in_cone(shapes, apex, axis, angle)]
    assert 0 < len(kept) < len(shapes)
    whole, _ = first_hit(shapes, apex[None], rays)
    part, _ = first_hit(kept, apex[None], rays)
    assert torch.equal(whole, part)
    end = apex + 40 * axis
    along = shapes[near_segment(shapes, apex, end, 0.5)]
    assert 0 < len(along) < len(shapes)
    direct, _ = first_hit(shapes, apex[None], axis[None])
    assert torch.equal(direct, first_hit(along, apex[None], axis[None])[0])


def test_points_inside_solids_are_found() -> None:
    shapes = make_shapes([BOX], yaw=math.pi / 2)
    points = torch.tensor([[0.0, 0.0, 0.9], [0.9, 0.0, 0.0], [0.0, 1.9, 0.0]])
    assert inside_any(shapes, points, 0.0).tolist() == [True, False, True]
    assert inside_any(shapes, points, 0.5).tolist() == [True, True, True]

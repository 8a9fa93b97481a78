"""Where training groups come from: real scenes with known depth, and collages of their photos."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from fvgen_recon.distill.pack import PackedScene
from fvgen_recon.distill.stereo.batch import StereoBatch, ViewGroup, knows_enough, stack_groups
from fvgen_recon.pointcloud.neighbour import other_views, view_overlap, viewing_angle
from fvgen_recon.render.collage import (
    TextureAtlas,
    build_atlas,
    random_arc,
    random_collage,
    render_collages,
)
from fvgen_recon.types import Cameras

_GAP_BINS = ((3.0, 15.0), (15.0, 30.0), (30.0, 48.0), (48.0, 80.0), (80.0, 140.0))
_MIN_OVERLAP = 0.15
_WIDE_SHARE = 0.35  # of the arcs around collages
_WIDE_GAP_DEG = 110.0
_TEXTURES = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class RealScene:
    """A scene, or a procedural world, whose photos lie decoded on the device."""

    name: str
    photos: UInt8[Tensor, "V 3 H W"]
    cameras: Cameras
    """On the CPU."""
    truth: Float[Tensor, "V H W"]
    """Known inverse depth; 0 where it is not known."""
    angle: Float[Tensor, "V V"]
    """Angle of sight between photos in degrees; huge where they share too little."""


def prepare_scene(packed: PackedScene, truth: Tensor, device: torch.device) -> RealScene | None:
    """Decode a scene and relate its views; none where no depth is known."""
    size = (packed.cameras.height, packed.cameras.width)
    images = packed.scene(range(len(packed)), *size).images
    photos = (images * 255).round().byte()
    return relate_photos(packed.name, photos, packed.cameras, truth, device)


def relate_photos(
    name: str,
    photos: UInt8[Tensor, "V 3 H W"],
    cameras: Cameras,
    truth: Float[Tensor, "V H W"],
    device: torch.device,
) -> RealScene | None:
    """Relate the views of a scene; none where too little depth is known, or no two views fit."""
    usable = (truth > 0).flatten(1).sum(dim=1) > 200
    if int(usable.sum()) < 2:
        return None
    middle = torch.stack(
        [t[t > 0].median() if u else t.new_ones(()) for t, u in zip(truth, usable, strict=True)]
    )
    others = other_views(len(photos), middle)
    overlap = view_overlap(cameras, middle[:, None] * torch.tensor([0.7, 1.0, 1.3]))
    sight = viewing_angle(cameras, middle)
    sight = sight.masked_fill(overlap.mean(dim=-1) < _MIN_OVERLAP, 1e3)
    angle = torch.full((len(photos), len(photos)), 1e3).scatter(1, others, sight)
    angle = torch.maximum(angle, angle.mT)
    angle[~usable] = 1e3
    angle[:, ~usable] = 1e3
    if not bool((angle < _GAP_BINS[-1][1]).any()):
        return None
    return RealScene(
        name=name,
        photos=photos.to(device),
        cameras=cameras,
        truth=truth.to(device),
        angle=angle,
    )


def draw_views(angle: Float[Tensor, "V V"], count: int, rng: torch.Generator) -> list[int] | None:
    """Draw photos with gaps from one randomly chosen bin; none if the draw fails."""
    low, high = _GAP_BINS[int(torch.randint(len(_GAP_BINS), (), generator=rng))]
    fits = (angle >= low) & (angle < high)
    first = torch.nonzero(fits.any(dim=1)).flatten()
    if not len(first):
        return None
    chosen = [int(first[int(torch.randint(len(first), (), generator=rng))])]
    while len(chosen) < count:
        nearest = angle[chosen].amin(dim=0)
        nearest[chosen] = 0
        pool = torch.nonzero((nearest >= low) & (nearest < high)).flatten()
        if not len(pool):
            return None
        chosen.append(int(pool[int(torch.randint(len(pool), (), generator=rng))]))
    return chosen


def cut_group(
    scene: RealScene, views: Sequence[int], size: tuple[int, int], rng: torch.Generator
) -> ViewGroup:
    """Cut a random window of about one scale out of each photo and bring it to `size`."""
    source = scene.photos.shape[-2:]
    largest = min(source[0] / size[0], source[1] / size[1])
    zoom = largest / (1 + 0.35 * float(torch.rand((), generator=rng)))
    window = tuple(int(s * zoom) for s in size)
    place = torch.rand(2, generator=rng) + 0.15 * torch.randn(len(views), 2, generator=rng)
    room = torch.tensor([s - w for s, w in zip(source, window, strict=True)])
    corners = (place.clamp(0, 1) * room).long()
    cuts = [
        (view, slice(top, top + window[0]), slice(left, left + window[1]))
        for view, (top, left) in zip(views, corners.tolist(), strict=True)
    ]
    photos = torch.stack([scene.photos[v, :, rows, columns] for v, rows, columns in cuts])
    truth = torch.stack([scene.truth[cut] for cut in cuts])
    K = scene.cameras.K[list(views)].clone()
    K[:, :2, 2] -= corners.flip(-1)
    K[:, 0] *= size[1] / window[1]
    K[:, 1] *= size[0] / window[0]
    c2w = scene.cameras.c2w[list(views)]
    return ViewGroup(
        images=F.interpolate(photos.float() / 255, size, mode="bilinear", antialias=True),
        cameras=Cameras(c2w=c2w, K=K, height=size[0], width=size[1]),
        truth=F.interpolate(truth[None], size, mode="nearest-exact")[0],
    )


def mirror_group(group: ViewGroup) -> ViewGroup:
    """Return the scene as a mirror shows it: as true, and never seen."""
    cameras = group.cameras
    side = torch.tensor([-1.0, 1.0, 1.0, 1.0])
    K = cameras.K.clone()
    K[:, 0, 2] = cameras.width - K[:, 0, 2]
    K[:, 0, 1] = -K[:, 0, 1]
    c2w = side[:, None] * cameras.c2w * side
    return ViewGroup(
        images=group.images.flip(-1),
        cameras=Cameras(c2w=c2w, K=K, height=cameras.height, width=cameras.width),
        truth=group.truth.flip(-1),
    )


def atlas_from(scenes: Sequence[RealScene], rng: torch.Generator) -> TextureAtlas:
    """Cut textures out of training photos."""
    textures = []
    for index in range(_TEXTURES):
        photos = scenes[index % len(scenes)].photos
        photo = photos[int(torch.randint(len(photos), (), generator=rng))].float() / 255
        shorter = min(photo.shape[-2:])
        side = int(shorter * (0.35 + 0.65 * float(torch.rand((), generator=rng))))
        corner = [int(torch.randint(s - side + 1, (), generator=rng)) for s in photo.shape[-2:]]
        cut = photo[:, corner[0] : corner[0] + side, corner[1] : corner[1] + side]
        textures.append(F.interpolate(cut[None], (256, 256), mode="bilinear", antialias=True)[0])
    return build_atlas(torch.stack(textures))


def _fitness(scene: RealScene, size: tuple[int, int]) -> float:
    """How often a scene is drawn: the root of its number of photos, 0 where they lie otherwise."""
    height, width = scene.photos.shape[-2:]
    return len(scene.photos) ** 0.5 if (height > width) == (size[0] > size[1]) else 0.0


class StereoBank:
    """Draws training batches: of photographed scenes, of worlds and of collages."""

    def __init__(
        self,
        scenes: Sequence[RealScene],
        device: torch.device,
        seed: int,
        *,
        worlds: Sequence[RealScene] = (),
        world_share: float = 0.0,
    ) -> None:
        """Take scenes.

        Args:
            scenes: Photographed ones; textures of collages are cut out of their photos too.
            device: Where batches lie.
            seed: Decides everything.
            worlds: Procedural ones.
            world_share: Chance that a group comes from these where it is no collage.
        """
        self.scenes = scenes
        self.worlds, self.world_share = worlds, world_share if worlds else 0.0
        self.device = device
        self.rng = torch.Generator().manual_seed(seed)
        self.atlas = atlas_from(scenes, torch.Generator().manual_seed(0))

    def _real(self, count: int, size: tuple[int, int]) -> ViewGroup | None:
        is_world = float(torch.rand((), generator=self.rng)) < self.world_share
        pool = self.worlds if is_world else self.scenes
        fits = torch.tensor([_fitness(scene, size) for scene in pool])
        if not bool(fits.any()):
            return None
        scene = pool[int(torch.multinomial(fits, 1, generator=self.rng))]
        views = draw_views(scene.angle, count, self.rng)
        if views is None:
            return None
        group = cut_group(scene, views, size, self.rng)
        if float(torch.rand((), generator=self.rng)) < 0.5:
            group = mirror_group(group)
        return group if knows_enough(group.truth) else None

    def _rendered(self, count: int, num_views: int, size: tuple[int, int]) -> list[ViewGroup]:
        if count == 0:
            return []
        collages = [random_collage(self.rng, self.atlas.count) for _ in range(count)]
        cameras = [self._arc(num_views, size) for _ in range(count)]
        renders = render_collages(collages, self.atlas, cameras)
        return [
            ViewGroup(images=r.images, cameras=c, truth=1 / r.depth)
            for r, c in zip(renders, cameras, strict=True)
        ]

    def _arc(self, num_views: int, size: tuple[int, int]) -> Cameras:
        is_wide = float(torch.rand((), generator=self.rng)) < _WIDE_SHARE
        gap = _WIDE_GAP_DEG if is_wide else 45.0
        return random_arc(self.rng, num_views, height=size[0], width=size[1], max_gap_deg=gap)

    @torch.no_grad()
    def draw(
        self, num_groups: int, num_views: int, size: tuple[int, int], real_share: float
    ) -> StereoBatch:
        """Draw groups; each is real with a given chance, where one can be found in ten draws."""
        wanted = torch.rand(num_groups, generator=self.rng) < real_share
        draws = (10 if wants else 0 for wants in wanted.tolist())
        found = [
            next((g for _ in range(n) if (g := self._real(num_views, size)) is not None), None)
            for n in draws
        ]
        rendered = iter(self._rendered(found.count(None), num_views, size))
        return stack_groups([g or next(rendered) for g in found], self.rng)

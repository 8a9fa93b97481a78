"""Where training groups come from: real scenes with known depth, and collages of their photos."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from fvgen_recon.distill.pack import PackedScene
from fvgen_recon.distill.stereo.batch import StereoBatch, ViewGroup, random_span, stack_groups
from fvgen_recon.pointcloud.neighbour import other_views, view_overlap, viewing_angle
from fvgen_recon.render.collage import (
    TextureAtlas,
    build_atlas,
    move_collage,
    random_arc,
    random_collage,
    render_collage,
)
from fvgen_recon.types import Cameras

_GAP_BINS = ((3.0, 15.0), (15.0, 30.0), (30.0, 48.0))
_MIN_OVERLAP = 0.3
_TEXTURES = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class RealScene:
    """A scene whose photos lie decoded on the device."""

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
    scene = packed.scene(range(len(packed)), *size)
    usable = (truth > 0).flatten(1).sum(dim=1) > 200
    if int(usable.sum()) < 2:
        return None
    middle = torch.stack(
        [t[t > 0].median() if u else t.new_ones(()) for t, u in zip(truth, usable, strict=True)]
    )
    others = other_views(len(packed), middle)
    overlap = view_overlap(packed.cameras, middle[:, None] * torch.tensor([0.7, 1.0, 1.3]))
    sight = viewing_angle(packed.cameras, middle)
    sight = sight.masked_fill(overlap.mean(dim=-1) < _MIN_OVERLAP, 1e3)
    angle = torch.full((len(packed), len(packed)), 1e3).scatter(1, others, sight)
    angle = torch.maximum(angle, angle.mT)
    angle[~usable] = 1e3
    angle[:, ~usable] = 1e3
    if not bool((angle < _GAP_BINS[-1][1]).any()):
        return None
    return RealScene(
        name=packed.name,
        photos=(scene.images * 255).round().byte().to(device),
        cameras=packed.cameras,
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
    place = torch.rand(2, generator=rng)
    images, truths, intrinsics = [], [], []
    for view in views:
        own = (place + 0.15 * torch.randn(2, generator=rng)).clamp(0, 1)
        top, left = (int(p * (s - w)) for p, s, w in zip(own, source, window, strict=True))
        photo = scene.photos[view, :, top : top + window[0], left : left + window[1]]
        photo = photo[None].float() / 255
        images.append(F.interpolate(photo, size, mode="bilinear", antialias=True)[0])
        truth = scene.truth[view, top : top + window[0], left : left + window[1]]
        truths.append(F.interpolate(truth[None, None], size, mode="nearest-exact")[0, 0])
        K = scene.cameras.K[view].clone()
        K[:2, 2] -= torch.tensor([left, top])
        K[0] *= size[1] / window[1]
        K[1] *= size[0] / window[0]
        intrinsics.append(K)
    c2w = scene.cameras.c2w[list(views)]
    cameras = Cameras(c2w=c2w, K=torch.stack(intrinsics), height=size[0], width=size[1])
    device = scene.photos.device
    return ViewGroup(
        images=torch.stack(images), cameras=cameras.to(device), truth=torch.stack(truths)
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


class StereoBank:
    """Draws training batches, real and rendered."""

    def __init__(self, scenes: Sequence[RealScene], device: torch.device, seed: int) -> None:
        self.scenes = scenes
        self.device = device
        self.rng = torch.Generator().manual_seed(seed)
        self.atlas = atlas_from(scenes, torch.Generator().manual_seed(0))

    def _real(self, count: int, size: tuple[int, int]) -> tuple[ViewGroup, Tensor] | None:
        portrait = size[0] > size[1]
        shapes = [s.photos.shape[-2:] for s in self.scenes]
        fits = torch.tensor([(h > w) == portrait for h, w in shapes])
        num_photos = torch.tensor([float(len(s.photos)) for s in self.scenes])
        if not bool(fits.any()):
            return None
        scene = self.scenes[int(torch.multinomial(num_photos.sqrt() * fits, 1, generator=self.rng))]
        views = draw_views(scene.angle, count, self.rng)
        if views is None:
            return None
        group = cut_group(scene, views, size, self.rng)
        span = random_span(group.truth, self.rng)
        return None if span is None else (group, span)

    def _rendered(self, count: int, size: tuple[int, int]) -> tuple[ViewGroup, Tensor]:
        collage = move_collage(random_collage(self.rng, self.atlas.count), self.device)
        cameras = random_arc(self.rng, count, height=size[0], width=size[1]).to(self.device)
        render = render_collage(collage, self.atlas, cameras)
        truth = 1 / render.depth
        span = random_span(truth, self.rng)
        assert span is not None
        return ViewGroup(images=render.images, cameras=cameras, truth=truth), span

    @torch.no_grad()
    def draw(
        self, num_groups: int, num_views: int, size: tuple[int, int], real_share: float
    ) -> StereoBatch:
        """Draw groups; each is real with a given chance, where one can be found in ten draws."""
        groups, spans = [], []
        for _ in range(num_groups):
            found = None
            if float(torch.rand((), generator=self.rng)) < real_share:
                for _ in range(10):
                    found = self._real(num_views, size)
                    if found is not None:
                        break
            group, span = found or self._rendered(num_views, size)
            groups.append(group)
            spans.append(span)
        return stack_groups(groups, spans, self.rng)

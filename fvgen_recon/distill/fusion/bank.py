"""Samples to train a fusion on: held on the device, cut out and changed."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.fusion.example import Example
from fvgen_recon.fusion.sample import unpack_planes
from fvgen_recon.fusion.view import SCALE, FusionView

_ZOOMS = (0.6, 0.75, 0.9, 1.0, 1.0, 1.15)
"""How much larger a cut-out becomes; images of other sizes come so."""
_GRID = 16
_EXPOSURE, _TINT = 0.1, 0.03
"""Standard deviation of the logarithm of a photo's brightness, and of that of its channels."""
_STEADY = 1e-3
"""Added to a view's squared error before others are compared with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionBatch:
    """Cut-outs of one size with what is right there."""

    view: FusionView
    photo: Float[Tensor, "N 3 H W"]
    unit: Float[Tensor, "N"]
    """Mean squared error that the plain rule makes in each whole view."""


class FusionBank:
    """Training samples on a device; draws batches of changed cut-outs.

    Scenes count by the root of the number of their views.
    """

    def __init__(self, examples: Sequence[Example], device: torch.device, seed: int) -> None:
        counts = Counter(example.scene for example in examples)
        self.device = device
        self.rng = torch.Generator().manual_seed(seed)
        self.planes = [example.sample.planes.to(device) for example in examples]
        self.facts = torch.cat([example.sample.facts.row() for example in examples]).to(device)
        self.chance = torch.tensor([counts[example.scene] ** -0.5 for example in examples])
        self.unit = torch.stack([self._plain_error(i) for i in range(len(examples))])

    def __len__(self) -> int:
        """Number of views."""
        return len(self.planes)

    @torch.no_grad()
    def _plain_error(self, index: int) -> Tensor:
        view, photo = unpack_planes(self.planes[index][None], self.facts[index : index + 1])
        return (view.plain() - photo).square().mean()

    @torch.no_grad()
    def draw(self, count: int, crop: int) -> FusionBatch:
        """Draw a batch of square cut-outs, at most `crop` pixels wide."""
        picked = torch.multinomial(self.chance, count, replacement=True, generator=self.rng)
        planes = [self.planes[i] for i in picked.tolist()]
        zoom = _ZOOMS[self._integer(len(_ZOOMS))]
        side = min(round(crop / zoom), *(min(p.shape[-2:]) for p in planes))
        size = min(crop, max(_GRID, round(side * zoom / _GRID) * _GRID))
        cuts = torch.stack([self._cut(p, side) for p in planes])
        index = picked.to(self.device)
        view, photo = unpack_planes(cuts, self.facts[index])
        if size != side:
            view, photo = _resize(view, photo, size)
        view, photo = self._turn(view, photo)
        view, photo = self._recolour(view, photo)
        return FusionBatch(view=view, photo=photo, unit=self.unit[index] + _STEADY)

    def _integer(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.rng))

    def _cut(self, planes: Tensor, side: int) -> Tensor:
        top, left = (self._integer(length - side + 1) for length in planes.shape[-2:])
        return planes[:, top : top + side, left : left + side]

    def _turn(self, view: FusionView, photo: Tensor) -> tuple[FusionView, Tensor]:
        """Mirror and transpose a whole batch at random."""
        coins = torch.rand(3, generator=self.rng).lt(0.5).tolist()
        axes = [axis for axis, coin in zip((-1, -2), coins, strict=False) if coin]

        def turn(image: Tensor) -> Tensor:
            image = torch.flip(image, axes) if axes else image
            return image.mT if coins[2] else image

        return _each_map(view, turn), turn(photo)

    def _recolour(self, view: FusionView, photo: Tensor) -> tuple[FusionView, Tensor]:
        """Change brightness and colour of each view, and the order of channels, in all images.

        The photo's own brightness is drawn too: what the camera chose for it nobody can tell, but
        a network can learn by heart for a few scenes.
        """
        count = len(photo)
        gain = 0.7 + 0.5 * torch.rand(count, 1, generator=self.rng)
        gain = gain * (0.92 + 0.16 * torch.rand(count, 3, generator=self.rng))
        order = torch.randperm(3, generator=self.rng).tolist()
        factor = gain.to(self.device)[..., None, None]

        def paint(image: Tensor) -> Tensor:
            return (image[:, order] * factor).clamp(0, 1)

        spread = view.spread * factor.mean(dim=1, keepdim=True)
        changed = replace(view, splat=paint(view.splat), frame=paint(view.frame), spread=spread)
        shift = _EXPOSURE * torch.randn(count, 1, generator=self.rng)
        shift = shift + _TINT * torch.randn(count, 3, generator=self.rng)
        return changed, paint(photo) * shift.exp().to(self.device)[..., None, None]


_MAPS = ("splat", "spread", "opacity", "frame", "trusted", "layered")


def _each_map(view: FusionView, change: Callable[[Tensor], Tensor]) -> FusionView:
    return replace(view, **{name: change(getattr(view, name)) for name in _MAPS})


def _resize(view: FusionView, photo: Tensor, size: int) -> tuple[FusionView, Tensor]:
    """Bring cut-outs to another size; the generator's pixels are then as much larger."""
    maps = [getattr(view, name) for name in _MAPS]
    stack = torch.cat([*maps, photo], dim=1)
    stack = F.interpolate(stack, (size, size), mode="bilinear", antialias=True)
    *maps, photo = stack.clamp(0, 1).split([m.shape[1] for m in maps] + [3], dim=1)
    facts = view.facts.clone()
    facts[:, SCALE] *= view.splat.shape[-1] / size
    return replace(view, **dict(zip(_MAPS, maps, strict=True)), facts=facts), photo

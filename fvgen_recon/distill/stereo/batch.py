"""What the stereo network is trained on: groups of views with the depth that is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fvgen_recon.pointcloud.neighbour import other_views
from fvgen_recon.types import Cameras

_SPAN_SAMPLE = 8192
_LEAST_KNOWN = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewGroup:
    """A few views of one scene, all of one size."""

    images: Float[Tensor, "V 3 H W"]
    """Photos in [0, 1]."""
    cameras: Cameras
    """Their cameras."""
    truth: Float[Tensor, "V H W"]
    """Known inverse depth; 0 where it is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StereoBatch:
    """Groups of equally many views, stacked."""

    images: Float[Tensor, "N 3 H W"]
    """Photos in [0, 1], as the network sees them."""
    cameras: Cameras
    """One camera for each."""
    sources: Int[Tensor, "N S"]
    """The other views of each view's group."""
    span: Float[Tensor, "N 2"]
    """Far and near end of the inverse depths that are tried."""
    truth: Float[Tensor, "N H W"]
    """Known inverse depth; 0 where it is not known."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all that lies on the device."""
        cameras = self.cameras
        return self.images, cameras.c2w, cameras.K, self.sources, self.span, self.truth


def random_span(truth: Float[Tensor, "V H W"], rng: torch.Generator) -> Float[Tensor, "V 2"] | None:
    """Span of the known depths of each view with a random margin; none where too few are known.

    Resembles what `find_depth_span` returns at inference, which would take too long here.
    """
    flat = truth.flatten(1)
    sample = flat[:, :: max(1, flat.shape[1] // _SPAN_SAMPLE)]
    count = (sample > 0).sum(dim=1)
    if int(count.min()) < _LEAST_KNOWN:
        return None
    ordered = sample.masked_fill(sample <= 0, torch.inf).sort(dim=1).values
    far, near = (
        ordered.gather(1, ((count - 1) * end).round().long()[:, None])[:, 0] for end in (0.01, 0.99)
    )
    loose = torch.rand(2, len(far), generator=rng).to(far)
    width = (near - far).clamp_min(0.02 * near)
    far = torch.minimum(far - (0.05 + 0.4 * loose[0]) * width, (0.5 + 0.45 * loose[0]) * far)
    far = torch.maximum(far, 0.02 * near)
    return torch.stack([far, near + (0.04 + 0.5 * loose[1]) * width], dim=1)


def jitter_photos(images: Float[Tensor, "V 3 H W"], rng: torch.Generator) -> Tensor:
    """Change exposure, colour and sharpness of each photo a little, and add noise."""
    count = len(images)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng).to(images)

    gain = 1 + 0.12 * draw(count, 1, 1, 1) + 0.03 * draw(count, 3, 1, 1)
    gamma = (0.15 * draw(count, 1, 1, 1)).exp()
    images = images.clamp(1e-3, 1) ** gamma * gain.clamp(0.5, 1.6)
    if float(torch.rand((), generator=rng)) < 0.3:
        view = int(torch.randint(count, (), generator=rng))
        soft = F.avg_pool2d(F.pad(images[view], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        images = torch.cat([images[:view], soft[None], images[view + 1 :]])
    noise = 0.02 * float(torch.rand((), generator=rng)) * torch.randn_like(images)
    return (images + noise).clamp(0, 1)


def stack_groups(
    groups: Sequence[ViewGroup], spans: Sequence[Float[Tensor, "V 2"]], rng: torch.Generator
) -> StereoBatch:
    """Stack groups of one size and number of views; their photos are jittered."""
    count = len(groups[0].images)
    first = groups[0].cameras
    others = other_views(count, first.K)
    images = [jitter_photos(g.images, rng) for g in groups]
    return StereoBatch(
        images=torch.cat(images),
        cameras=Cameras(
            c2w=torch.cat([g.cameras.c2w for g in groups]),
            K=torch.cat([g.cameras.K for g in groups]),
            height=first.height,
            width=first.width,
        ),
        sources=torch.cat([others + i * count for i in range(len(groups))]),
        span=torch.cat(list(spans)),
        truth=torch.cat([g.truth for g in groups]),
    )

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
    """Their cameras, on the CPU."""
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

    def copy(self) -> "StereoBatch":
        """Return the same in memory of its own."""
        images, c2w, K, sources, span, truth = (t.clone() for t in self.tensors())
        cameras = Cameras(c2w=c2w, K=K, height=self.cameras.height, width=self.cameras.width)
        return StereoBatch(images=images, cameras=cameras, sources=sources, span=span, truth=truth)


def _sample_truth(truth: Float[Tensor, "V H W"]) -> Float[Tensor, "V Q"]:
    flat = truth.flatten(1)
    return flat[:, :: max(1, flat.shape[1] // _SPAN_SAMPLE)]


def knows_enough(truth: Float[Tensor, "V H W"]) -> bool:
    """Whether `random_span` finds enough known depths in each view."""
    return int((_sample_truth(truth) > 0).sum(dim=1).min()) >= _LEAST_KNOWN


def random_span(truth: Float[Tensor, "V H W"], rng: torch.Generator) -> Float[Tensor, "V 2"] | None:
    """Span of the known depths of each view with a random margin; none where too few are known.

    Resembles what `find_depth_span` returns at inference, which would take too long here.
    """
    sample = _sample_truth(truth)
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


def jitter_photos(
    images: Float[Tensor, "N 3 H W"], num_views: int, rng: torch.Generator
) -> Float[Tensor, "N 3 H W"]:
    """Change exposure, colour and sharpness of each photo a little, and add noise.

    Args:
        images: Photos in [0, 1], in groups of `num_views`.
        num_views: Photos of a group: these get equally much noise, and one of some is softened.
        rng: On the CPU.
    """
    count, num_groups = len(images), len(images) // num_views

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    gain = 1 + 0.12 * draw(count, 1, 1, 1) + 0.03 * draw(count, 3, 1, 1)
    gamma = (0.15 * draw(count, 1, 1, 1)).exp().to(images)
    images = images.clamp(1e-3, 1) ** gamma * gain.clamp(0.5, 1.6).to(images)
    softened = torch.rand(num_groups, generator=rng) < 0.3
    view = torch.randint(num_views, (num_groups,), generator=rng)
    index = (torch.arange(num_groups) * num_views + view)[softened].to(images.device)
    if len(index):
        soft = F.avg_pool2d(F.pad(images[index], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        images = images.index_copy(0, index, soft)
    strength = 0.02 * torch.rand(num_groups, generator=rng).repeat_interleave(num_views)
    seed = int(torch.randint(2**62, (), generator=rng))
    own = torch.Generator(images.device).manual_seed(seed)
    noise = torch.randn(images.shape, generator=own, device=images.device)
    return (images + strength.to(images)[:, None, None, None] * noise).clamp(0, 1)


def stack_groups(groups: Sequence[ViewGroup], rng: torch.Generator) -> StereoBatch:
    """Stack groups of one size and number of views, each of which knows enough depth.

    Spans are drawn, and the photos jittered, for all at once: a GPU's host is kept busy by the
    number of operations.
    """
    count = len(groups[0].cameras)
    truth = torch.cat([g.truth for g in groups])
    span = random_span(truth, rng)
    assert span is not None
    first = groups[0].cameras
    cameras = Cameras(
        c2w=torch.cat([g.cameras.c2w for g in groups]),
        K=torch.cat([g.cameras.K for g in groups]),
        height=first.height,
        width=first.width,
    )
    others = other_views(count, first.K)
    sources = torch.cat([others + i * count for i in range(len(groups))])
    return StereoBatch(
        images=jitter_photos(torch.cat([g.images for g in groups]), count, rng),
        cameras=cameras.to(truth.device),
        sources=sources.to(truth.device),
        span=span,
        truth=truth,
    )

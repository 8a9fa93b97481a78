"""Made-up clips for trying out training: soft patterns that drift, renders with holes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fvgen_recon.diffusion.backbone import Codec
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.distill.validation import ValidationClips
from fvgen_recon.types import Anchor, Guidance


def synthetic_clips(
    codec: Codec, *, num_clips: int, num_frames: int, height: int, width: int, seed: int
) -> ValidationClips:
    """Make clips whose renders miss a third of the picture, except at both ends.

    Args:
        codec: Encodes them; its networks decide the latents.
        num_clips: How many.
        num_frames: Length of each.
        height: In pixels, a multiple of the codec's.
        width: In pixels, a multiple of the codec's.
        seed: Decides everything.
    """
    rng = torch.Generator().manual_seed(seed)
    frames = torch.stack([_drift(num_frames, height, width, rng) for _ in range(num_clips)])
    guidance = [_with_holes(clip, rng) for clip in frames]
    batch = TrainingBatch(x0=codec.encode(frames, rng), condition=codec.condition(guidance, rng))
    return ValidationClips(
        clips=batch,
        renders=torch.stack([g.frames for g in guidance]),
        truth=frames,
        codec=codec,
    )


def _drift(
    num_frames: int, height: int, width: int, rng: torch.Generator
) -> Float[Tensor, "T 3 H W"]:
    """A soft random pattern that moves by a few pixels a frame."""
    pattern = torch.rand(1, 3, 6, 10, generator=rng)
    wide = F.interpolate(pattern, (height, width + 4 * num_frames), mode="bicubic").clamp(0, 1)
    return torch.cat([wide[..., 4 * i : 4 * i + width] for i in range(num_frames)])


def _with_holes(frames: Float[Tensor, "T 3 H W"], rng: torch.Generator) -> Guidance:
    num_frames, _, height, width = frames.shape
    coarse = torch.rand(num_frames, 1, 4, 6, generator=rng)
    mask = F.interpolate(coarse, (height, width)) > 1 / 3
    mask[[0, -1]] = True
    ends = (Anchor(frame=0, view=0), Anchor(frame=num_frames - 1, view=1))
    return Guidance(
        frames=frames * mask,
        mask=mask,
        depth=mask.float(),
        layers=frames[None] * mask,
        layer_masks=mask[None],
        anchors=ends,
        reference=frames[0],
    )

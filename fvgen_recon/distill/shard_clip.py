"""One prepared clip as a handful of small files: what lies between two keys of a shard.

Photos and renders are JPEG strips (the T frames below each other), masks one-bit PNG strips, depth
a reduced array, cameras and provenance JSON, latents safetensors.
"""

import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.distill.data import TrainingBatch
from fvgen_recon.errors import InputError
from fvgen_recon.types import Anchor, Cameras, Guidance

SCHEMA = 1
_DEPTH_SHRINK = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipOrigin:
    """Where a clip came from and what made its renders."""

    scene: str
    """Path of the scene below the data folder."""
    photos: tuple[str, ...]
    """Names of the photos of the T frames, as the scene's files give them."""
    views: tuple[int, ...]
    """Frames of the clip that the point cloud was made from."""
    estimator: str
    """Source of the point cloud."""
    is_raw: bool
    """Whether the renders are bare ones in the teacher's manner (`GuidanceConfig.is_raw`)."""
    version: str
    """Version of fvgen-recon that made it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardClip:
    """A real clip, what a generator would be given for it and, if wanted, its latents."""

    key: str
    """Unique name: letters, digits, `-` and `_`, as WebDataset wants."""
    origin: ClipOrigin
    """Where it came from."""
    frames: Float[Tensor, "T 3 H W"]
    """The photos."""
    cameras: Cameras
    """Their cameras."""
    guidance: Guidance
    """Renders of the sparse-view cloud along the same path; depth is stored reduced by 4."""
    latents: TrainingBatch | None = None
    """One clip's latents and condition, in half precision on disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file of a clip."""

    name: str
    """What follows the key and a dot in the shard."""
    data: bytes
    """Its content."""


def encode_clip(clip: ShardClip, *, quality: int = 95) -> tuple[Member, ...]:
    """Return a clip's files; the same clip always gives the same bytes.

    Args:
        clip: What to store.
        quality: JPEG quality of photos and renders.
    """
    guidance = clip.guidance
    members = [
        Member(name="json", data=json.dumps(_describe(clip)).encode()),
        Member(name="real.jpg", data=_jpeg(clip.frames, quality)),
        Member(name="render.jpg", data=_jpeg(guidance.frames, quality)),
        Member(name="mask.png", data=_png(guidance.mask)),
        Member(name="depth.npy", data=_reduced_depth(guidance.depth)),
    ]
    for i in range(guidance.layers.shape[0]):
        members.append(Member(name=f"layer{i}.jpg", data=_jpeg(guidance.layers[i], quality)))
        members.append(Member(name=f"layer{i}.png", data=_png(guidance.layer_masks[i])))
    if clip.latents is not None:
        members.append(Member(name="latents.safetensors", data=_latent_bytes(clip.latents)))
    return tuple(members)


def decode_clip(key: str, members: tuple[Member, ...]) -> ShardClip:
    """Return the clip that `encode_clip` stored, photos and renders as the JPEGs have them.

    Raises:
        InputError: A file is missing or does not decode.
    """
    data = {member.name: member.data for member in members}
    try:
        content = json.loads(data["json"])
        if content["schema"] != SCHEMA:
            raise InputError(f"The clip {key} has schema {content['schema']}: {SCHEMA} is read.")
        return _assemble(key, content, data)
    except (KeyError, ValueError, OSError) as error:
        raise InputError(
            f"The clip {key} is incomplete or damaged ({error!r}): run the preparation with "
            "--verify."
        ) from error


def decode_latents(data: bytes) -> TrainingBatch:
    """Return stored latents as a batch of one, in float32."""
    tensors = {name: value.float() for name, value in load_tensors(data).items()}
    x0 = tensors.pop("x0")
    return TrainingBatch(x0=x0, condition=Condition(**tensors))


def _describe(clip: ShardClip) -> dict[str, Any]:
    cameras, anchors = clip.cameras, clip.guidance.anchors
    return {
        "schema": SCHEMA,
        "origin": asdict(clip.origin),
        "height": cameras.height,
        "width": cameras.width,
        "c2w": cameras.c2w.double().cpu().tolist(),
        "K": cameras.K.double().cpu().tolist(),
        "anchors": [asdict(anchor) for anchor in anchors],
        "num_layers": clip.guidance.layers.shape[0],
    }


def _assemble(key: str, content: dict[str, Any], data: dict[str, bytes]) -> ShardClip:
    cameras = Cameras(
        c2w=torch.tensor(content["c2w"], dtype=torch.float32),
        K=torch.tensor(content["K"], dtype=torch.float32),
        height=content["height"],
        width=content["width"],
    )
    lists = {key: tuple(content["origin"][key]) for key in ("photos", "views")}
    origin = ClipOrigin(**{**content["origin"], **lists})
    real = _read_strip(data["real.jpg"], cameras)
    names = [f"layer{i}" for i in range(content["num_layers"])]
    shape = (0, len(cameras), 3, cameras.height, cameras.width)
    masks = [_read_mask(data[f"{n}.png"], cameras) for n in names]
    layers = [_read_strip(data[f"{n}.jpg"], cameras) for n in names]
    mask, frames = _read_mask(data["mask.png"], cameras), _read_strip(data["render.jpg"], cameras)
    if not origin.is_raw:
        # JPEG rings around holes, which are exactly black.
        frames, layers = frames * mask, [x * m for x, m in zip(layers, masks, strict=True)]
    anchors = tuple(Anchor(**anchor) for anchor in content["anchors"])
    empty = torch.zeros(shape)
    guidance = Guidance(
        frames=frames,
        mask=mask,
        depth=_full_depth(data["depth.npy"], cameras) * mask,
        layers=torch.stack(layers) if layers else empty,
        layer_masks=torch.stack(masks) if masks else empty[:, :, :1].bool(),
        anchors=anchors,
        reference=frames[min(anchors, key=lambda a: a.frame).frame] if anchors else frames[0],
    )
    stored = data.get("latents.safetensors")
    latents = None if stored is None else decode_latents(stored)
    return ShardClip(
        key=key, origin=origin, frames=real, cameras=cameras, guidance=guidance, latents=latents
    )


def _jpeg(frames: Float[Tensor, "T 3 H W"], quality: int) -> bytes:
    pixels = (frames.detach().clamp(0, 1) * 255).round().byte().cpu()
    strip = pixels.permute(0, 2, 3, 1).flatten(0, 1).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _png(mask: Bool[Tensor, "T 1 H W"]) -> bytes:
    strip = mask[:, 0].flatten(0, 1).contiguous().cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _read_strip(data: bytes, cameras: Cameras) -> Float[Tensor, "T 3 H W"]:
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.array(image.convert("RGB"))
    frames = torch.from_numpy(pixels).unflatten(0, (len(cameras), cameras.height))
    return frames.permute(0, 3, 1, 2).float() / 255


def _read_mask(data: bytes, cameras: Cameras) -> Bool[Tensor, "T 1 H W"]:
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.array(image).astype(bool)
    return torch.from_numpy(pixels).unflatten(0, (len(cameras), cameras.height))[:, None]


def _reduced_depth(depth: Float[Tensor, "T 1 H W"]) -> bytes:
    """Depth at every fourth pixel, over its greatest value, which stands in front of it."""
    greatest = depth.amax().clamp_min(1e-12).float().cpu()
    offset = _DEPTH_SHRINK // 2
    small = depth[:, 0, offset::_DEPTH_SHRINK, offset::_DEPTH_SHRINK].float().cpu() / greatest
    buffer = io.BytesIO()
    np.save(buffer, greatest.reshape(1).numpy())
    np.save(buffer, small.half().contiguous().numpy())
    return buffer.getvalue()


def _full_depth(data: bytes, cameras: Cameras) -> Float[Tensor, "T 1 H W"]:
    buffer = io.BytesIO(data)
    greatest, small = np.load(buffer, allow_pickle=False), np.load(buffer, allow_pickle=False)
    rows = torch.from_numpy(small).float()[:, None] * float(greatest[0])
    return F.interpolate(rows, (cameras.height, cameras.width), mode="nearest")


def _latent_bytes(latents: TrainingBatch) -> bytes:
    condition = latents.condition
    tensors = {
        "x0": latents.x0,
        "concat": condition.concat,
        "context": condition.context,
        "null_context": condition.null_context,
    }
    return save_tensors({k: v.detach().half().cpu().contiguous() for k, v in tensors.items()})

"""Samples to train on: what a fusion network sees of one view, with the photo that is right.

Kept as npz, a byte a value, so that thousands of views fit into a GPU's memory.
"""

import zipfile
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fvgen_recon.errors import InputError
from fvgen_recon.fusion.view import NUM_FACTS, FusionView, ViewFacts
from fvgen_recon.io.file import atomic_path

PLANES = 12
"""Planes of a sample: splat 3, frame 3, photo 3, spread, opacity, masks."""
_SPREAD_STEPS = 1020.0
"""Spread is kept up to 0.25: members seldom differ by more."""
_TRUSTED, _LAYERED = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionSample:
    """One view with the photo taken there, as it is kept."""

    planes: UInt8[Tensor, "P H W"]
    """Splat, frame and photo in 255ths, spread in 1020ths, opacity in 255ths, masks as bits."""
    facts: ViewFacts


def make_sample(view: FusionView, photo: Float[Tensor, "3 H W"] | None = None) -> FusionSample:
    """Return a single view as a sample; without a photo its place is black.

    Args:
        view: A batch of one view.
        photo: What is right, in [0, 1].
    """
    truth = torch.zeros_like(view.splat) if photo is None else photo[None].to(view.splat)
    bits = (view.trusted > 0.5) * _TRUSTED + (view.layered > 0.5) * _LAYERED
    images = torch.cat([view.splat, view.frame, truth], dim=1) * 255
    rest = torch.cat([view.spread * _SPREAD_STEPS, view.opacity * 255, bits.float()], dim=1)
    planes = torch.cat([images, rest], dim=1)[0].round().clamp(0, 255).byte().cpu()
    return FusionSample(planes=planes, facts=ViewFacts.from_row(view.facts[0].tolist()))


def with_photo(sample: FusionSample, photo: Float[Tensor, "3 H W"]) -> FusionSample:
    """Return a sample with the photo that is right.

    Raises:
        InputError: The photo has another size.
    """
    if photo.shape[-2:] != sample.planes.shape[-2:]:
        raise InputError(
            f"A photo of the sample's size {tuple(sample.planes.shape[-2:])} was expected: "
            f"{tuple(photo.shape[-2:])} came."
        )
    planes = sample.planes.clone()
    planes[6:9] = (photo * 255).round().clamp(0, 255).byte()
    return FusionSample(planes=planes, facts=sample.facts)


def unpack_planes(
    planes: Float[Tensor, "N P H W"] | UInt8[Tensor, "N P H W"], facts: Float[Tensor, "N F"]
) -> tuple[FusionView, Float[Tensor, "N 3 H W"]]:
    """Return views of samples of one size, and the photos that are right.

    Args:
        planes: As samples keep them.
        facts: Their facts.
    """
    bits = planes[:, 11:12].byte()
    values = planes.float() / 255
    view = FusionView(
        splat=values[:, :3],
        frame=values[:, 3:6],
        spread=values[:, 9:10] * (255 / _SPREAD_STEPS),
        opacity=values[:, 10:11],
        trusted=((bits & _TRUSTED) > 0).float(),
        layered=((bits & _LAYERED) > 0).float(),
        facts=facts,
    )
    return view, values[:, 6:9]


def write_sample(path: Path, sample: FusionSample) -> None:
    """Write a sample atomically."""
    facts = np.array(astuple(sample.facts), dtype=np.float32)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, planes=sample.planes.numpy(), facts=facts)


def read_sample(path: Path) -> FusionSample:
    """Read a sample.

    Raises:
        InputError: The file is missing, damaged or no sample.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            planes, facts = content["planes"], content["facts"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no sample to train a fusion on: {error}.") from error
    if planes.dtype != np.uint8 or planes.ndim != 3 or len(planes) != PLANES:
        raise InputError(f"{path} holds no {PLANES} planes of bytes: write the samples again.")
    if facts.shape != (NUM_FACTS,):
        raise InputError(f"{path} holds no {NUM_FACTS} facts: write the samples again.")
    return FusionSample(planes=torch.from_numpy(planes), facts=ViewFacts.from_row(facts.tolist()))

"""Write a densified scene in a form that other 3DGS trainers read."""

from dataclasses import replace
from pathlib import Path

import torch

from fvgen_recon.densify.bank import Bank
from fvgen_recon.densify.densifier import Densified
from fvgen_recon.io.image import write_image
from fvgen_recon.io.ply import write_points
from fvgen_recon.io.scenes import write_transforms
from fvgen_recon.types import Cameras

MIN_CONFIDENCE = 0.05
"""Confidence below which a pixel of a generated frame is masked out: nothing is known there."""


def export_views(folder: Path, densified: Densified, bank: Bank) -> None:
    """Write photos, generated frames, their masks, `transforms.json` and the trusted points.

    Photos and frames share the working size, so that a trainer needs one set of image sizes. Masks
    are white where a frame may be trained on; nerfstudio wants one for every image or for none. The
    bank's folder must lie inside `folder`.
    """
    scene = densified.scene
    photos = tuple(f"photos/{index:03d}.png" for index in range(len(scene)))
    for name, image in zip(photos, scene.images, strict=True):
        write_image(folder / name, image.cpu())
    whole = torch.ones_like(scene.images[0]).cpu()
    write_image(folder / "masks" / "photo.png", whole)
    frames = tuple(str((bank.folder / e.image).relative_to(folder)) for e in bank.entries)
    masks = ["masks/photo.png"] * len(photos)
    for entry in bank.entries:
        masks.append(f"masks/{entry.image}")
        _, confidence = bank.read(entry)
        write_image(folder / masks[-1], (confidence >= MIN_CONFIDENCE) * whole)
    cameras = [scene.cameras.to("cpu"), *(entry.camera for entry in bank.entries)]
    trusted = densified.points[densified.points.confidence >= 0.5]
    write_points(folder / "points.ply", trusted.to("cpu"))
    write_transforms(
        folder,
        _stack(cameras),
        photos + frames,
        points="points.ply",
        extras=tuple({"mask_path": mask} for mask in masks),
    )


def _stack(cameras: list[Cameras]) -> Cameras:
    """Join cameras of one image size into one row."""
    first = cameras[0]
    return replace(
        first,
        c2w=torch.cat([camera.c2w.reshape(-1, 4, 4) for camera in cameras]),
        K=torch.cat([camera.K.reshape(-1, 3, 3) for camera in cameras]),
    )

"""Folders of procedural rooms with exact poses, as a user's scenes would look."""

from dataclasses import replace
from pathlib import Path

from factories import make_cameras

from fvgen_recon.io.image import write_image
from fvgen_recon.io.scenes import write_transforms
from fvgen_recon.render.procedural import random_scene, render_procedural


def write_room(
    folder: Path, *, seed: int = 0, num_photos: int = 9, height: int = 32, width: int = 48
) -> Path:
    """A room photographed from an arc inside its walls, which stand four units from its centre."""
    cameras = make_cameras(num_photos, height, width, arc_deg=4.0 * num_photos)
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] *= 0.75
    cameras = replace(cameras, c2w=c2w)
    images = render_procedural(random_scene(seed), cameras, supersample=1).images
    names = tuple(f"images/frame_{i + 1:05d}.png" for i in range(num_photos))
    for name, image in zip(names, images, strict=True):
        write_image(folder / name, image)
    write_transforms(folder, cameras, names)
    return folder

"""Render the example scene that ships with the repository.

Usage:
    python scripts/make_example.py --output examples/room
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from fvgen_recon.io.image import write_image
from fvgen_recon.io.scenes import write_transforms
from fvgen_recon.render.procedural import arc_cameras, random_scene, render_procedural


@dataclass(frozen=True)
class Options:
    """Size and contents of the example scene."""

    output: Path = Path("examples/room")
    """Folder to write."""
    seed: int = 4
    """Seed of the room."""
    num_views: int = 25
    """Number of photos."""
    arc_deg: float = 60.0
    """Angle that the photos span around the room's centre."""
    height: int = 240
    """Image height in pixels."""
    width: int = 360
    """Image width in pixels."""


def main(options: Options) -> None:
    """Photograph a procedural room from an arc."""
    azimuths = np.linspace(-options.arc_deg / 2, options.arc_deg / 2, options.num_views)
    cameras = arc_cameras(azimuths.tolist(), radius=3.4, height=options.height, width=options.width)
    render = render_procedural(random_scene(options.seed, num_solids=12), cameras, supersample=3)
    names = tuple(f"images/{index:03d}.jpg" for index in range(options.num_views))
    for name, image in zip(names, render.images, strict=True):
        write_image(options.output / name, image)
    write_transforms(options.output, cameras, names)
    print(f"Wrote {options.num_views} photos and transforms.json to {options.output}.")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

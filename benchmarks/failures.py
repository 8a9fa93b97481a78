r"""Where generators fail, one failure a row, in procedural worlds with a photo for every frame.

A world is photographed along a walk of 16 frames of which the two ends are the inputs. Each case
changes one thing, and is measured beside a walk in the same world without the change.

Usage:
    python benchmarks/failures.py --picture docs/figures/failures.jpg \
        --out benchmarks/results/failures.json
"""

import io
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fvgen_recon.densify.generators import GeneratorConfig, load_generator
from fvgen_recon.diffusion.generator import VideoGenerator
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.comparison import Judge, Truth, caption, run_method
from fvgen_recon.evaluation.feature import load_stlpips
from fvgen_recon.evaluation.held_out import TRUTH
from fvgen_recon.evaluation.machine import describe_machine
from fvgen_recon.evaluation.result import without_nan
from fvgen_recon.evaluation.warp import warped_difference
from fvgen_recon.io.file import atomic_path, write_json
from fvgen_recon.pointcloud import make_estimator
from fvgen_recon.render.guidance import render_guidance
from fvgen_recon.render.world import plan_walk, random_world, render_world
from fvgen_recon.types import Anchor, Cameras, Scene, Trajectory

GENERATORS = ("render", "fill", "student", "regression")
"""Columns between the second input and the photo."""
GAMMA = 2.2
"""From colours as displayed to light, but for the worlds' compressed highlights."""
_QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class Case:
    """A walk between two photos of a world, and what is difficult about it."""

    name: str
    """Heading of its row."""
    kind: str = "room"
    """Kind of world."""
    seed: int = 5003
    """Of the world and the walk. Worlds that were trained on wear photos, these wear none."""
    gap_deg: float = 20.0
    """Angle between the two photos."""
    repeats: float = 1.0
    """Factor of how often textures repeat: far below 1 leaves none, far above 1 a fine pattern."""
    gloss: float = 0.0
    """Strength of a highlight on all surfaces, which moves with the camera."""
    stops: float = 0.0
    """Exposure of the second photo over all others, in powers of two."""
    widening: float = 1.0
    """How much more than the photos the middle frame sees, sideways and upwards."""

    @property
    def without(self) -> "Case":
        """A walk of the usual angle in the same world with nothing difficult about it."""
        return Case(name=f"{self.kind} {self.seed}", kind=self.kind, seed=self.seed)


CASES = (
    Case(name="surfaces without texture", kind="table", seed=5004, repeats=0.02),
    Case(name="45 degrees between the photos", gap_deg=45.0),
    Case(name="gloss", kind="table", seed=5002, gloss=4.0),
    Case(name="second photo one stop brighter", stops=1.0),
    Case(name="frames see what no photo saw", widening=2.0),
)


@dataclass(frozen=True)
class Options:
    """What to measure and where to write it."""

    picture: Path
    """JPEG to write."""
    out: Path
    """JSON to write."""
    estimator: str = "stereo"
    """Source of the point cloud."""
    height: int = 128
    """Of the frames in pixels."""
    width: int = 208
    """Likewise."""
    num_frames: int = 16
    """Length of each clip."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """What was photographed of a case."""

    images: Float[Tensor, "T 3 H W"]
    """A photo for every frame; the first and the last are the inputs."""
    depth: Float[Tensor, "T 1 H W"]
    """True z-depth in metres; 0 where the sky is seen."""
    cameras: Cameras


def photograph(case: Case, options: Options) -> Film:
    """Render the photos of a walk.

    Raises:
        InputError: The world has no room for the walk.
    """
    world = random_world(case.seed, kind=case.kind)
    rng = torch.Generator().manual_seed(case.seed)
    size = (options.height, options.width)
    walk = plan_walk(
        world, rng, num_frames=options.num_frames, num_extras=0, size=size, gap_deg=case.gap_deg
    )
    if walk is None:
        raise InputError(f"The world of `{case.name}` has no room for a walk: take another seed.")
    shapes = replace(
        world.shapes,
        uv_scale=world.shapes.uv_scale * case.repeats,
        gloss=torch.full_like(world.shapes.gloss, case.gloss) if case.gloss else world.shapes.gloss,
    )
    cameras = _widen(walk.cameras, case.widening)
    render = render_world(replace(world, shapes=shapes), cameras)
    return Film(
        images=torch.cat([render.images[:-1], expose(render.images[-1:], case.stops)]),
        depth=render.depth[:, None],
        cameras=cameras,
    )


def expose(images: Float[Tensor, "N 3 H W"], stops: float) -> Float[Tensor, "N 3 H W"]:
    """Return photos exposed by powers of two longer; what is too bright is clipped."""
    return (2**stops * images**GAMMA).clamp(0, 1) ** (1 / GAMMA)


def _widen(cameras: Cameras, widening: float) -> Cameras:
    """Shorten the lens towards the middle frame; the ends keep theirs."""
    bump = torch.linspace(0, math.pi, len(cameras)).sin()
    K = cameras.K.clone()
    K[:, [0, 1], [0, 1]] /= (1 + (widening - 1) * bump)[:, None]
    return replace(cameras, K=K)


def clip_of(case: Case, film: Film, estimator: str) -> Truth:
    """Render what generators are given of a film: points of its two ends alone."""
    count = len(film.cameras)
    ends = [0, count - 1]
    scene = Scene(images=film.images[ends], cameras=film.cameras[ends], names=("first", "last"))
    anchors = (Anchor(frame=0, view=0), Anchor(frame=count - 1, view=1))
    trajectory = Trajectory(cameras=film.cameras, anchors=anchors)
    cloud = make_estimator(estimator).estimate(scene)
    return Truth(
        guidance=render_guidance(scene, cloud, trajectory),
        cameras=film.cameras,
        frames=tuple(range(1, count - 1)),
        photos=film.images[1:-1],
        scene=case.name,
        clip=0,
        gap_deg=case.gap_deg,
    )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of one case."""

    rows: tuple[dict[str, Any], ...]
    """Of each generator, as in the JSON."""
    pictures: tuple[Float[Tensor, "3 H W"], ...]
    """Both inputs, the middle frame of each generator and its photo."""


def measure(
    case: Case, generators: Mapping[str, VideoGenerator], judge: Judge, options: Options
) -> Trial:
    """Run every generator on a case."""
    film = photograph(case, options)
    truth = clip_of(case, film, options.estimator)
    middle = len(film.cameras) // 2
    rows, pictures = [], [film.images[0], film.images[-1]]
    for name, generator in generators.items():
        row, frames = run_method(name, generator, truth, judge)
        shown = frames[1:-1].clamp(0, 1)
        rows.append({**asdict(row), "unsteady_surface": surface_unsteadiness(shown, film)})
        pictures.append(frames[middle].clamp(0, 1))
    return Trial(rows=tuple(rows), pictures=(*pictures, film.images[middle]))


def surface_unsteadiness(frames: Float[Tensor, "N 3 H W"], film: Film) -> float:
    """Return how much neighbour frames change on the same surface point, relative to the photos.

    Unlike `Score.unsteady`, warped by the true depth and over all surfaces, holes included.
    """
    cameras, depth = film.cameras[1:-1], film.depth[1:-1]
    ours = warped_difference(frames, cameras, depth, depth > 0)
    theirs = warped_difference(film.images[1:-1], cameras, depth, depth > 0)
    return float(ours / theirs.clamp_min(1e-6))


def draw(trials: Mapping[Case, Trial]) -> bytes:
    """Return the picture as JPEG: a line of words over each case's row."""
    names = ("input", "input", *GENERATORS, TRUTH)
    width = next(iter(trials.values())).pictures[0].shape[-1]
    lines = [torch.cat([caption(width, name) for name in names], dim=-1)]
    for number, (case, trial) in enumerate(trials.items(), 1):
        row = torch.cat(trial.pictures, dim=-1)
        lines += [caption(row.shape[-1], f"{number}. {case.name}"), row]
    pixels = (torch.cat(lines, dim=-2) * 255).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def run(cases: Sequence[Case], options: Options) -> None:
    """Measure cases and what they are without their difficulty; write numbers and picture."""
    make_estimator(options.estimator)  # Before any work.
    judge = load_stlpips("alex")
    generators = {
        name: load_generator(GeneratorConfig(name=name, num_frames=options.num_frames))
        for name in GENERATORS
    }
    trials: dict[Case, Trial] = {}
    for case in dict.fromkeys([*(case.without for case in cases), *cases]):
        trials[case] = measure(case, generators, judge, options)
        for row in trials[case].rows:
            print(f"{case.name:>36} {row['method']:>10}  PSNR {row['score']['psnr']:5.2f}")
    rows = [row for trial in trials.values() for row in trial.rows]
    settings = {"estimator": options.estimator, "height": options.height, "width": options.width}
    write_json(
        options.out,
        without_nan(
            {
                "machine": describe_machine(),
                "settings": {**settings, "num_frames": options.num_frames},
                "weights": {name: generators[name].weights_hash for name in GENERATORS},
                "cases": [{**asdict(case), "without": case.without.name} for case in cases],
                "rows": rows,
            }
        ),
    )
    with atomic_path(options.picture) as temporary:
        temporary.write_bytes(draw({case: trials[case] for case in cases}))


def main(options: Options) -> int:
    """Measure all cases; return the exit status."""
    try:
        run(CASES, options)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

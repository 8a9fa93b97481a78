"""Turn a few posed photos into many views for any 3DGS trainer, without nerfstudio.

Usage:
    python scripts/densify.py --data examples/room --views 6 --output outputs/room_dense
"""

import logging
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro

from fvgen_recon.densify.bank import Bank
from fvgen_recon.densify.densifier import Densified, Densifier, DensifyConfig
from fvgen_recon.densify.export import export_views
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.io.file import require_folder
from fvgen_recon.io.scenes import Capture, ViewSelection, load_capture, load_scene, select_views
from fvgen_recon.io.scenes.nerfstudio import TRANSFORMS
from fvgen_recon.io.video import write_video


@dataclass(frozen=True)
class Options:
    """What to densify and where to put it."""

    data: Path
    """Scene folder: transforms.json, COLMAP, SEVA/ReconFusion, Blender or plain photos."""
    output: Path
    """Folder to write: photos, generated frames, transforms.json, points and the bank."""
    views: int | None = None
    """Number of input views, by farthest point; all where not given."""
    densify: DensifyConfig = field(default_factory=DensifyConfig)
    """The front half."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""


def run(options: Options) -> Densified:
    """Load the chosen photos, generate clips and write everything."""
    _check_device(options.device)
    capture = load_capture(options.data)
    _check_output(options.output, capture)
    selection = ViewSelection(count=options.views)
    split = select_views(capture, selection)
    scene = load_scene(capture, split.inputs).to(options.device)
    generator = replace(options.densify.generator, device=options.device)
    config = replace(options.densify, generator=generator)
    bank = Bank(options.output / "bank")
    densified = Densifier(config).run(scene, bank=bank)
    export_views(options.output, densified, bank)
    for old in options.output.glob("clip_*.mp4"):
        old.unlink()
    for index, clip in enumerate(densified.clips):
        write_video(options.output / f"clip_{index:03d}.mp4", clip.frames.cpu(), 8.0)
    return densified


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"The device {name} cannot be used here: name another, such as cpu."
        ) from error


def _check_output(output: Path, capture: Capture) -> None:
    """Refuse folders in which something of the user's would be written over."""
    require_folder(output)
    bank = output / "bank"
    require_folder(bank)
    is_foreign = (output / TRANSFORMS).exists() and not bank.is_dir()
    if is_foreign or output.resolve() == capture.folder.resolve():
        raise InputError(
            f"The output folder {output} holds a scene already, whose {TRANSFORMS} would be "
            "replaced: name another folder."
        )


def main(options: Options) -> int:
    """Run, and say in one sentence what went wrong where it did."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        densified = run(options)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = ", ".join(f"{part} {value:.1f} s" for part, value in densified.seconds.items())
    print(f"{len(densified.clips)} clips in {options.output} ({seconds}).")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

"""What a stereo training has to know first: depth of the scenes' photos, and procedural worlds.

Both are found in several processes off one queue and kept in a folder, so that a second run finds
them there.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.multiprocessing as mp

from fvgen_recon.distill.pack import PackedScene, read_pack
from fvgen_recon.distill.source import photo_crops
from fvgen_recon.distill.stereo.bank import RealScene, prepare_scene
from fvgen_recon.distill.stereo.truth import TruthSettings, find_truth, load_truth, save_truth
from fvgen_recon.distill.stereo.world import load_world, photograph_world, save_world
from fvgen_recon.errors import FvgenError, InputError

_WORLD = "procedural-"
Say = Callable[[str], None]
"""Takes lines of progress; called in other processes too, so it must be a function of a module."""


def _print(text: str) -> None:
    # The built-in one could not be sent to a process once a library has put its own in its place.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What to prepare, and where it is kept."""

    pack: Path
    """Packed scenes with tracks."""
    cache: Path
    """Folder for what is found."""
    only_scenes: tuple[str, ...] = ()
    """Restricts the scenes."""
    truth: TruthSettings = field(default_factory=TruthSettings)
    num_workers: int = 0
    """Processes, spread over all GPUs; 0 works in this one."""
    num_worlds: int = 0
    """Procedural worlds to photograph."""
    world_views: int = 24
    """Photos of each."""
    say: Say = _print

    def scenes(self) -> tuple[PackedScene, ...]:
        """Read the scenes.

        Raises:
            InputError: They have no tracks.
        """
        return read_tracked(self.pack, self.only_scenes)

    def world_names(self) -> list[str]:
        """Names of the worlds; with other settings others, so that none stands for another."""
        return [f"{_WORLD}{self.world_views}-{seed}" for seed in range(self.num_worlds)]


def read_tracked(path: Path, only_scenes: tuple[str, ...] = ()) -> tuple[PackedScene, ...]:
    """Read a pack, restricted to the scenes asked for.

    Raises:
        InputError: They have no tracks.
    """
    scenes = read_pack(path)
    if any(scene.tracks is None for scene in scenes):
        raise InputError(f"{path} holds no tracks: pack it with scripts/pack_scenes.py --tracks.")
    return tuple(s for s in scenes if not only_scenes or s.name in only_scenes)


def prepare_training(
    wanted: Preparation, device: torch.device
) -> tuple[list[RealScene], list[RealScene]]:
    """Find what the folder lacks; return all scenes and all worlds that can be trained on.

    Raises:
        InputError: The pack has no tracks.
        FvgenError: A process failed, or no scene has known depth.
    """
    _find_all(wanted)
    scenes = []
    for packed in wanted.scenes():
        truth = load_truth(wanted.cache / f"{packed.name}.safetensors")
        prepared = prepare_scene(packed, truth.inverse_depth, device)
        if prepared is None:
            wanted.say(f"{packed.name} is left out: no two views with known depth fit")
        else:
            scenes.append(prepared)
    if not scenes:
        raise FvgenError("No training scene has known depth: are photos and poses right?")
    paths = [wanted.cache / f"{name}.safetensors" for name in wanted.world_names()]
    worlds = [load_world(path, device) for path in paths if path.exists()]
    return scenes, [world for world in worlds if world is not None]


def _find_all(wanted: Preparation) -> None:
    scenes = sorted(wanted.scenes(), key=len, reverse=True)  # the longest work first
    names = [scene.name for scene in scenes] + wanted.world_names()
    if wanted.num_workers == 0:
        _work_off(iter(names), 0, wanted)
        return
    context = mp.get_context("spawn")
    jobs = context.Queue()
    for name in [*names, *[""] * wanted.num_workers]:
        jobs.put(name)
    workers = [
        context.Process(target=_work_in_process, args=(jobs, i, wanted))
        for i in range(wanted.num_workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    jobs.cancel_join_thread()  # else jobs that nobody took would keep this process at its end
    failed = sum(worker.exitcode != 0 for worker in workers)
    if failed:
        raise FvgenError(
            f"{failed} of {len(workers)} processes that measure depth or photograph worlds failed: "
            "see their messages above. What is done is kept; run it again, with fewer of them "
            "(--num-workers) where memory was short."
        )


def _work_in_process(jobs: "mp.Queue[str]", worker: int, wanted: Preparation) -> None:
    """Work until an empty name comes, as one of several processes."""
    torch.set_num_threads(1)
    _work_off(iter(jobs.get, ""), worker, wanted)


def _work_off(jobs: Iterator[str], worker: int, wanted: Preparation) -> None:
    """Do what the folder lacks: depth of a scene by its name, a world by its seed."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", worker % torch.cuda.device_count())
    scenes = {scene.name: scene for scene in wanted.scenes()}
    for name in jobs:
        path = wanted.cache / f"{name}.safetensors"
        if path.exists():
            continue
        if name in scenes:
            _measure_depth(scenes[name], wanted, path, device)
        else:
            _photograph(int(name.split("-")[-1]), tuple(scenes.values()), wanted, path, device)


def _measure_depth(
    scene: PackedScene, wanted: Preparation, path: Path, device: torch.device
) -> None:
    truth = find_truth(scene, wanted.truth, device)
    save_truth(path, truth)
    wanted.say(
        f"depth of {scene.name}: {len(scene)} photos, {100 * truth.dense_share:.0f} % known, "
        f"of the sparse points {100 * truth.right_2:.0f} % within 2 %, "
        f"{100 * truth.right_5:.0f} % within 5 %"
    )


def _photograph(
    seed: int,
    scenes: tuple[PackedScene, ...],
    wanted: Preparation,
    path: Path,
    device: torch.device,
) -> None:
    """Photograph a world with textures of some of the scenes' photos."""
    crops = photo_crops(scenes, 12, 256, torch.Generator().manual_seed(seed))
    long_side = max(scenes[0].cameras.height, scenes[0].cameras.width)
    try:
        world = photograph_world(
            seed, crops, long_side=long_side, num_views=wanted.world_views, device=device
        )
    except InputError as error:
        wanted.say(f"world {seed} is left out: {error}")
        return
    save_world(path, world)
    wanted.say(f"world {seed}: {wanted.world_views} photos")

r"""Train variants of one method on the same cases and say what each change is worth.

The variants come from a JSON file: a list of objects with `name`, `overrides` (settings of
nerfstudio's configuration as `path.to.field=value`) and, where they differ, `method` and
`estimator`. The first is what the others are compared with. Trials run in worker processes that
stay, and point clouds are kept, so that a trial costs little more than its training.

Usage:
    python benchmarks/ablation.py --data scenes/ --variants benchmarks/ablations/splat.json \
        --views 3,9 --iterations 1000 --parallel 8 --out benchmarks/results/ablation.json
"""

import hashlib
import multiprocessing
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import tyro
from case import Case
from options import SceneOptions
from safetensors.torch import load_file, save_file

from fvgen_recon.densify.size import fit_scene, working_size
from fvgen_recon.errors import FvgenError, InputError
from fvgen_recon.evaluation.fold import held_out_scene
from fvgen_recon.evaluation.judge import load_jury
from fvgen_recon.evaluation.machine import describe_machine, plain_path
from fvgen_recon.evaluation.metric import psnr, ssim
from fvgen_recon.io.file import atomic_path, read_json, write_json
from fvgen_recon.io.image import read_image
from fvgen_recon.types import PointCloud, Scene

METRICS = ("psnr", "ssim", "st_lpips_alex")


@dataclass(frozen=True, kw_only=True)
class Options(SceneOptions):
    """What to run."""

    variants: Path
    """JSON file with the variants."""
    views: str = "3,9"
    """Numbers of input views, separated by commas."""
    only: str = ""
    """Names of variants, separated by commas; all where empty."""
    iterations: int = 1000
    """Training steps."""
    work: Path = Path("outputs/ablation")
    """Where folds, point clouds and trials are kept."""
    seed: int = 0
    """Seed of the training."""
    parallel: int = 1
    """Trials that run at the same time."""
    train_long_side: int = 0
    """Longer image side that is trained and scored on, where points are sought in larger photos; 0
    is that of the photos."""
    overrides: tuple[str, ...] = ()
    """Settings of every variant, before its own."""

    def common(self) -> tuple[str, ...]:
        """Return the settings of every variant."""
        size = f"pipeline.datamanager.dataparser.long_side={self.train_long_side}"
        return (size, *self.overrides)


@dataclass(frozen=True)
class Task:
    """One variant on one case."""

    case: Case
    variant: dict[str, Any]
    options: Options

    @property
    def key(self) -> dict[str, Any]:
        """What tells its result from others in the file."""
        return {
            "name": self.variant["name"],
            "scene": self.case.scene,
            "num_views": self.case.num_views,
        }


def plan_tasks(options: Options) -> list[Task]:
    """List all trials, case by case.

    Raises:
        InputError: The variants or the data are not as expected.
    """
    variants = read_json(options.variants)
    wanted = tuple(filter(None, options.only.split(",")))
    names = [variant.get("name") for variant in variants]
    missing = sorted(set(wanted) - set(names))
    if missing or not names or None in names or len(set(names)) < len(names):
        raise InputError(
            f"{options.variants} must list variants of different names, among them {missing}."
        )
    cases = options.plan(options.views)
    kept = [v for v in variants if not wanted or v["name"] in wanted]
    return [Task(case, variant, options) for case in cases for variant in kept]


_PARTS = ("xyz", "rgb", "confidence", "view")


class _CachedEstimator:
    """A point-cloud source whose results are kept in a folder."""

    def __init__(self, name: str, inner: Any, folder: Path) -> None:
        self.name, self.inner, self.folder = name, inner, folder

    def estimate(self, scene: Scene) -> PointCloud:
        """Return what the source returns, from the folder where it has been asked before."""
        digest = hashlib.sha256(f"{self.name} with alternatives".encode())
        for tensor in (scene.images, scene.cameras.c2w, scene.cameras.K):
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
        path = self.folder / f"{digest.hexdigest()[:20]}.safetensors"
        if not path.is_file():
            cloud = self.inner.estimate(scene)
            clouds = (cloud, *cloud.alternatives)
            with atomic_path(path) as partial:
                save_file({k: v for i, c in enumerate(clouds) for k, v in _pack(c, i)}, partial)
        tensors = load_file(path, device=str(scene.images.device))
        first, *others = [
            PointCloud(**{n: tensors[f"{i}.{n}"] for n in _PARTS})
            for i in range(len(tensors) // len(_PARTS))
        ]
        return replace(first, alternatives=tuple(others))


def _pack(cloud: PointCloud, number: int) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors of one of several clouds by name; a copy each, as colours are shared."""
    return [(f"{number}.{name}", getattr(cloud, name).cpu().clone()) for name in _PARTS]


def _keep_points(folder: Path) -> None:
    """Let every point-cloud source keep its results, in this process."""
    from fvgen_recon.pointcloud import ESTIMATORS

    assert isinstance(ESTIMATORS, dict)
    for name, make in list(ESTIMATORS.items()):
        ESTIMATORS[name] = lambda make=make, name=name: _CachedEstimator(name, make(), folder)


def _start_worker(folder: Path) -> None:
    """Prepare a worker process: one thread each, and a log of its own."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / f"worker_{os.getpid()}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _keep_points(folder)


def run_task(task: Task) -> dict[str, Any]:
    """Train and score one trial; what went wrong is part of the answer."""
    try:
        return {**task.key, **_train_and_score(task)}
    except (Exception, SystemExit) as error:  # One broken variant must not take the others along.
        traceback.print_exc()
        return {**task.key, "failure": f"{type(error).__name__}: {error}"}


def _train_and_score(task: Task) -> dict[str, Any]:
    import trial
    from methods import replace_missing_lpips

    options, variant, fold = task.options, task.variant, task.case.fold()
    out = task.case.folder / variant["name"]
    settings = trial.Options(
        fold=fold.folder,
        out=out,
        method=variant.get("method", "fvgen-splat-none"),
        iterations=options.iterations,
        device=options.device,
        estimator=variant.get("estimator", "stereo"),
        seed=options.seed,
        overrides=(*options.common(), *variant.get("overrides", ())),
    )
    config = trial.build_config(settings, fold)
    replace_missing_lpips()
    torch.manual_seed(options.seed)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    start = time.perf_counter()
    trainer.setup()
    trainer.train()
    seconds = time.perf_counter() - start
    trial.render_test_views(trainer.pipeline, fold, out / "renders")
    renders = [read_image(out / "renders" / f"{view:05d}.png") for view in fold.test]
    truth = held_out_scene(task.case.capture, fold)
    if options.train_long_side:
        size = working_size(fold.height, fold.width, options.train_long_side, 1)
        truth = fit_scene(truth, *size)
    return {
        **_score(renders, truth.images, options),
        "seconds": seconds,
        "num_gaussians": int(trainer.pipeline.model.num_points),
    }


@torch.no_grad()
def _score(renders: list[torch.Tensor], truth: torch.Tensor, options: Options) -> dict[str, float]:
    """Return the means of the metrics over the test views."""
    jury = load_jury(options.device, options.features)
    rows = []
    for render, photo in zip(renders, truth, strict=True):
        height, width = photo.shape[-2:]
        pair = render[None, :, :height, :width].to(options.device), photo[None].to(options.device)
        distances = {name: float(value) for name, value in jury.distances(*pair).items()}
        rows.append({"psnr": float(psnr(*pair)), "ssim": float(ssim(*pair)), **distances})
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Return a Markdown table: means over scenes, and the gain over the first variant."""
    counts = sorted({row["num_views"] for row in rows})
    heads = [f"{n} views: PSNR (gain, worst) / SSIM / ST-LPIPS" for n in counts]
    lines = ["| variant | " + " | ".join(heads) + " | seconds |", "|---" * (len(heads) + 2) + "|"]
    for name in names:
        cells = [_cell(rows, name, names[0], count) for count in counts]
        spent = [row["seconds"] for row in rows if row["name"] == name and "seconds" in row]
        seconds = f"{fmean(spent):.0f}" if spent else "-"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {seconds} |")
    return "\n".join(lines)


def _cell(rows: list[dict[str, Any]], name: str, first: str, count: int) -> str:
    found = {
        (row["name"], row["scene"]): row
        for row in rows
        if row["num_views"] == count and "failure" not in row
    }
    scenes = [scene for (n, scene) in found if n == name and (first, scene) in found]
    if not scenes:
        return "-"
    mine = [found[name, scene] for scene in scenes]
    gains = [found[name, s]["psnr"] - found[first, s]["psnr"] for s in scenes]
    means = [fmean(row.get(metric, float("nan")) for row in mine) for metric in METRICS]
    return (
        f"{means[0]:.2f} ({fmean(gains):+.2f}, {min(gains):+.2f}) / {means[1]:.3f} / {means[2]:.3f}"
    )


def main(options: Options) -> int:
    """Run every trial, write the JSON after each, print the table."""
    try:
        tasks = plan_tasks(options)
    except FvgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for case in {id(task.case): task.case for task in tasks}.values():
        case.fold()  # Written once, before workers share it.
    done = read_json(options.out)["trials"] if options.out.is_file() else []
    rows = [row for row in done if "failure" not in row]
    finished = [{k: row[k] for k in ("name", "scene", "num_views")} for row in rows]
    left = [task for task in tasks if task.key not in finished]
    machine = describe_machine(options.commit)
    context = multiprocessing.get_context("spawn")
    work = (options.work / "points").resolve()
    with ProcessPoolExecutor(
        options.parallel, mp_context=context, initializer=_start_worker, initargs=(work,)
    ) as pool:
        for job in as_completed([pool.submit(run_task, task) for task in left]):
            rows.append(job.result())
            settings = {key: plain_path(str(value)) for key, value in asdict(options).items()}
            write_json(options.out, {"machine": machine, "settings": settings, "trials": rows})
            print(rows[-1], file=sys.stderr)
    names = list(dict.fromkeys(task.variant["name"] for task in tasks))
    print(table(rows, names))
    return 1 if any("failure" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

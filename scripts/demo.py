"""Train on the bundled example scene with and without generated views, and show what comes out.

Usage:
    python scripts/demo.py --output demo
"""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image, ImageDraw, ImageFont

from fvgen_recon.densify.generators import DEFAULT_GENERATOR
from fvgen_recon.io.file import read_json, write_json

BIN = Path(sys.executable).parent
METHOD = "fvgen-splat-cpu"
VARIANTS = ("photos_only", "generated")
LABELS = ("held-out photo", "trained on photos only", "trained with generated views")
METRICS = {"psnr": ("PSNR", 2), "ssim": ("SSIM", 3), "st_lpips": ("ST-LPIPS", 3)}
CAPTION = 18


@dataclass(frozen=True)
class Options:
    """What to train on and where to put the results."""

    data: Path = Path("examples/room")
    """Scene folder."""
    output: Path = Path("demo")
    """Folder for the runs, the splat, the pictures and the video."""
    views: int = 4
    """Number of input photos; the others are held out and measured on."""
    iterations: int = 600
    """Training steps of each run."""
    generator: str = "default"
    """What fills the views: `default`, or one of those that `ns-train` knows."""


@dataclass(frozen=True)
class Command:
    """A command line and the file that its output goes to."""

    words: tuple[str, ...]
    log: Path


def run_together(commands: list[Command]) -> None:
    """Run commands side by side, sharing the processor; show the log of one that fails."""
    threads = max(1, (os.cpu_count() or 1) // len(commands))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    running = []
    for command in commands:
        print(f"$ {shlex.join(command.words)}", flush=True)
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("w") as log:
            words = [str(BIN / command.words[0]), *command.words[1:]]
            running.append(
                subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)
            )
    codes = [process.wait() for process in running]
    for command, code in zip(commands, codes, strict=True):
        if code != 0:
            print(command.log.read_text()[-3000:], file=sys.stderr)
            raise SystemExit(code)


def config_file(options: Options, name: str) -> Path:
    """Return where a run's configuration lies."""
    return options.output / "runs" / name / METHOD / "demo" / "config.yml"


def train(options: Options, name: str) -> Command:
    """Return the command that trains one splat."""
    generator = "none" if name == "photos_only" else options.generator
    words = (
        *("ns-train", METHOD, "--data", str(options.data), "--views", str(options.views)),
        *("--max-num-iterations", str(options.iterations), "--vis", "tensorboard"),
        *("--pipeline.densify.generator", generator),
        *("--output-dir", str(options.output / "runs")),
        *("--experiment-name", name, "--timestamp", "demo"),
    )
    return Command(words, options.output / "logs" / f"train_{name}.txt")


def evaluate(options: Options, name: str) -> Command:
    """Return the command that measures a splat on the held-out views and keeps the pictures."""
    words = (
        *("ns-eval", "--load-config", str(config_file(options, name))),
        *("--output-path", str(options.output / f"metrics_{name}.json")),
        *("--render-output-path", str(options.output / "eval" / name)),
    )
    return Command(words, options.output / "logs" / f"eval_{name}.txt")


def export(options: Options) -> Command:
    """Return the command that writes the splat as a PLY."""
    words = (
        *("python", "-m", "fvgen_nerfstudio.export", "gaussian-splat"),
        *("--load-config", str(config_file(options, "generated"))),
        *("--output-dir", str(options.output)),
    )
    return Command(words, options.output / "logs" / "export.txt")


def fly_through(options: Options) -> Command:
    """Return the command that renders a video between the input photos."""
    words = (
        *("ns-render", "interpolate", "--load-config", str(config_file(options, "generated"))),
        *("--pose-source", "train", "--interpolation-steps", "20", "--frame-rate", "15"),
        *("--output-path", str(options.output / "fly_through.mp4")),
    )
    return Command(words, options.output / "logs" / "render.txt")


def compare(options: Options) -> Path:
    """Put three held-out photos and both splats side by side."""
    folders = [options.output / "eval" / name for name in VARIANTS]
    files = sorted(path.name for path in folders[0].glob("*img*.*"))
    rows = []
    for file in (files[len(files) * k // 4] for k in (1, 2, 3)):
        first, second = (Image.open(folder / file).convert("RGB") for folder in folders)
        width, height = first.width // 2, first.height
        row = Image.new("RGB", (3 * width, height))
        row.paste(first, (0, 0))  # Truth and render lie side by side in one picture.
        row.paste(second.crop((width, 0, 2 * width, height)), (2 * width, 0))
        rows.append(row)
    sheet = Image.new("RGB", (rows[0].width, CAPTION + sum(row.height for row in rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, label in enumerate(LABELS):
        draw.text((column * sheet.width // 3 + 4, 1), label, fill="black", font=font)
    for index, row in enumerate(rows):
        sheet.paste(row, (0, CAPTION + index * row.height))
    path = options.output / "comparison.png"
    sheet.save(path)
    return path


def report(options: Options) -> None:
    """Print both splats' figures on the held-out views and keep them as JSON."""
    results = {
        name: read_json(options.output / f"metrics_{name}.json")["results"] for name in VARIANTS
    }
    keys = [key for key in METRICS if all(key in result for result in results.values())]
    write_json(
        options.output / "metrics.json",
        {name: {key: result[key] for key in keys} for name, result in results.items()},
    )
    generator = DEFAULT_GENERATOR if options.generator == "default" else options.generator
    held_out = len(list((options.output / "eval" / "generated").glob("*img*.*")))
    print(f"\n{options.views} input photos, {held_out} held-out views, generator `{generator}`:\n")
    print("| trained on | " + " | ".join(METRICS[key][0] for key in keys) + " |")
    print("|---|" + "---|" * len(keys))
    for name, label in zip(VARIANTS, ("photos only", "photos and generated views"), strict=True):
        cells = [f"{results[name][key]:.{METRICS[key][1]}f}" for key in keys]
        print(f"| {label} | {' | '.join(cells)} |")


def main(options: Options) -> None:
    """Train twice, measure, export and render."""
    start = time.perf_counter()
    run_together([train(options, name) for name in VARIANTS])
    run_together([evaluate(options, name) for name in VARIANTS])
    run_together([export(options), fly_through(options)])
    picture = compare(options)
    report(options)
    print(f"\nThe splat: {options.output / 'splat.ply'}")
    print(f"Side by side: {picture}")
    print(f"Fly-through: {options.output / 'fly_through.mp4'}")
    print(f"{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

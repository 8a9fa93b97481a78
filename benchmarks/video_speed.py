"""Seconds, memory and precision of the full-size video model with random weights.

Teacher and student run side by side in one process. Each result is printed and written as soon as
it is known, the most important ones first; no part begins that would not end in time.

Usage:
    python benchmarks/video_speed.py --out benchmarks/results/video.json
    python benchmarks/video_speed.py --out video.json --small  # the same code on a CPU
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from video_profile import kernel_shares
from video_rig import (
    Rig,
    Shape,
    matrix_rate,
    operations,
    peak_gib,
    psnr,
    relative_error,
    timed,
    wait,
)

from fvgen_recon.diffusion.sampler import SampleStep
from fvgen_recon.diffusion.viewcrafter.kernel import save_kernels
from fvgen_recon.diffusion.viewcrafter.upsample import MergedUpsample
from fvgen_recon.io.file import write_json

START = time.perf_counter()


@dataclass(frozen=True)
class Options:
    """What to measure."""

    out: Path
    """JSON file with the results."""
    parts: str = (
        "reference,eager,eager_teacher,upsampling,compiled,profile,compiled_teacher,precision,"
        "start,memory,large,graph,attention,released"
    )
    """Parts in the order in which they run; see their docstrings."""
    frames: int = 16
    """Frames of a clip."""
    height: int = 320
    """Image height in pixels."""
    width: int = 512
    """Image width in pixels."""
    repeats: int = 20
    """Timed repetitions of each part of the model."""
    teacher_steps: int = 50
    """Steps of the teacher."""
    limit: float = 330.0
    """Seconds after which no part begins."""
    mode: str = "default"
    """Mode of `torch.compile`."""
    upsampling: Literal["measure", "merged", "plain"] = "measure"
    """Whether doubling and the convolution after it become one operation when compiled."""
    small: bool = False
    """A narrow network, few repetitions, small frames: to try the script without a GPU."""
    start_with: Path | None = None
    """Only measure how long a first clip takes with these saved kernels; prints JSON."""


class Report:
    """Results so far, printed and written one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {}

    def add(self, part: str, /, **values: Any) -> None:
        """Add values of a part."""
        self.content.setdefault(part, {}).update(values)
        write_json(self.path, self.content)
        print(f"[{time.perf_counter() - START:6.1f} s] {part}: {_short(values)}", flush=True)


class Benchmark:
    """The parts; each is a method that reads what earlier ones left in `report` and here."""

    def __init__(self, options: Options, device: torch.device, report: Report) -> None:
        self.options, self.device, self.report = options, device, report
        shape = Shape(frames=options.frames, height=options.height, width=options.width)
        self.rig = Rig(shape, device, small=options.small)
        self.dtype = torch.bfloat16
        self.steps: list[SampleStep] = []
        self.outputs: dict[str, list[Tensor]] = {}
        self.frames: dict[str, Tensor] = {}
        self.merge = options.upsampling != "plain"
        if "reference" not in options.parts.split(","):
            self.rig.pipeline.to(self.dtype)

    def reference(self) -> None:
        """Run the student in float32, then cast all networks to bfloat16."""
        torch.backends.cudnn.allow_tf32 = False
        self.frames["float32"] = self.rig.student(self.steps.append).cpu()
        self._record("float32")
        self.rig.pipeline.to(self.dtype)

    def eager(self) -> None:
        """Time each part and the student without compilation; count operations."""
        rig, repeats = self.rig, max(2, self.options.repeats // 2)
        for name in ("encode", "unet", "decode", "student"):
            self.report.add("eager", **{name: timed(getattr(rig, name), repeats)})
        counts = {name: operations(getattr(rig, name)) for name in ("encode", "unet", "decode")}
        counts["student"] = counts["encode"] + 4 * counts["unet"] + counts["decode"]
        self.report.add("operations", **counts)
        size = 256 if self.options.small else 8192
        self.report.add("card", matrix_rate=matrix_rate(self.device, size))
        self.report.add("eager", student_memory=peak_gib(rig.student))
        self._record("eager")

    def eager_teacher(self) -> None:
        """Time the teacher without compilation, both branches of guidance as one batch."""
        self.rig.teacher(2, batched=True)
        work = lambda: self.rig.teacher(self.options.teacher_steps, batched=True)  # noqa: E731
        self.report.add("eager", teacher=timed(work, 2))

    def upsampling(self) -> None:
        """Choose between doubling with a convolution and one transposed convolution."""
        scale, totals = 1, {"plain": 0.0, "merged": 0.0}
        decoder = self.rig.pipeline.vae.decoder
        for block in decoder.up_blocks:
            for plain in block.upsamplers or ():
                size = (self.options.height // 8 * scale, self.options.width // 8 * scale)
                x = torch.randn(self.options.frames, plain.channels, *size, device=self.device)
                x = x.to(self.dtype, memory_format=torch.channels_last)
                fast = nn.Sequential(MergedUpsample(plain), _Last()).to(
                    memory_format=torch.channels_last
                )
                totals["merged"] += _quick(fast, x)
                totals["plain"] += _quick(plain, x)
                scale *= 2
        if self.options.upsampling == "measure":
            self.merge = totals["merged"] < totals["plain"]
        self.report.add("upsampling", **{f"{k}_s": v for k, v in totals.items()})

    def compiled(self) -> None:
        """Compile, and time each part and the student again."""
        rig = self.rig
        rig.pipeline.enable_compilation(self.options.mode, merge_upsampling=self.merge)
        for name in ("encode", "decode", "unet", "student"):
            self.report.add("compiled", **{name: timed(getattr(rig, name), self.options.repeats)})
        results = self.report.content["compiled"]
        self.report.add("compiled", student_memory=peak_gib(rig.student))
        rate = self.report.content["card"].get("matrix_rate", math.nan)
        shares = {
            name: count / results[name]["median_s"] / rate
            for name, count in self.report.content.get("operations", {}).items()
        }
        self.report.add("fraction_of_matrix_rate", **shares)
        self.report.add("compiled", clip=timed(rig.clip, self.options.repeats // 2))

    def profile(self) -> None:
        """Say which kinds of kernels take the time of one student's clip."""
        self.report.add("kernels", **kernel_shares(self.rig.student))

    def compiled_teacher(self) -> None:
        """Time the compiled teacher, the branches of guidance in turn."""
        work = lambda: self.rig.teacher(self.options.teacher_steps, batched=False)  # noqa: E731
        self.report.add("compiled", teacher=timed(work, 2))
        results = self.report.content
        student = results["compiled"]["student"]["median_s"]
        ratios = {
            f"over_{name}_teacher": results[name]["teacher"]["median_s"] / student
            for name in ("eager", "compiled")
            if "teacher" in results.get(name, {})
        }
        self.report.add("speedup_of_compiled_student", **ratios)

    def precision(self) -> None:
        """Compare outputs of each step, and frames, in float32, bfloat16 and compiled."""
        if not self.steps:
            raise RuntimeError("The part `precision` needs the part `reference`.")
        self._record("compiled")
        for a, b in (("eager", "float32"), ("compiled", "float32"), ("compiled", "eager")):
            pairs = zip(self.outputs[a], self.outputs[b], strict=True)
            self.report.add(
                f"{a}_against_{b}",
                times=[step.t for step in self.steps],
                relative_error_of_each_step=[relative_error(x, y) for x, y in pairs],
                psnr_of_frames_db=psnr(self.frames[a], self.frames[b]),
                psnr_of_decoding_alone_db=psnr(
                    self.frames[f"{a} decoding"], self.frames[f"{b} decoding"]
                ),
                deviation_of_frames=float(self.frames[b].std()),
            )

    def start(self) -> None:
        """Save the kernels and let a second process with an empty cache begin with them."""
        with tempfile.TemporaryDirectory() as folder:
            kernels = Path(folder) / "kernels.bin"
            began = time.perf_counter()
            size = save_kernels(kernels)
            self.report.add("start", save_s=time.perf_counter() - began, megabytes=size / 1e6)
            results = self.report.content["compiled"]
            names = ("encode", "decode", "unet", "student")
            cold = sum(results[name]["first_s"] for name in names)
            self.report.add("start", cold_first_clip_s=cold)
            command = [sys.executable, __file__, *sys.argv[1:], "--start-with", str(kernels)]
            command += ["--upsampling", "merged" if self.merge else "plain"]
            cache = {
                "TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache",
                "TRITON_CACHE_DIR": f"{folder}/t",
            }
            environment = {k: v for k, v in os.environ.items() if k not in cache} | cache
            # Kernels for a GPU are in the file; those for a CPU are built from source again.
            limit = 150 if self.device.type == "cuda" else 1800
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment, timeout=limit
            )
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            self.report.add("start", **json.loads(done.stdout.splitlines()[-1]))

    def memory(self) -> None:
        """Measure the most memory of whole pipeline calls, also in the low-memory modes."""
        pipeline = self.rig.pipeline
        self.report.add("memory", compiled_clip=peak_gib(self.rig.clip))
        with torch.compiler.set_stance("force_eager"):
            pipeline.enable_vae_slicing()
            pipeline.enable_feed_forward_chunking()
            self.report.add("memory", low_memory_clip=peak_gib(self.rig.clip))
            self.report.add("memory", low_memory_seconds=timed(self.rig.clip, 2))
            pipeline.disable_vae_slicing()
            pipeline.disable_feed_forward_chunking()

    def large(self) -> None:
        """Run the student on 25 frames of 576x1024, without compilation."""
        small = self.options.small
        shape = Shape(frames=25, height=32 if small else 576, width=32 if small else 1024)
        self.rig.use_shape(shape)
        with torch.compiler.set_stance("force_eager"):
            self.report.add("large", clip=timed(self.rig.clip, 1))
            self.report.add("large", memory=peak_gib(self.rig.clip))
        self.rig.use_shape(self.rig.first_shape)

    def graph(self) -> None:
        """Replay one compiled evaluation as a CUDA graph."""
        if self.device.type != "cuda":
            return
        graph = torch.cuda.CUDAGraph()
        self.rig.unet()
        wait()
        with torch.cuda.graph(graph):
            self.rig.unet()
        self.report.add("graph", unet=timed(graph.replay, self.options.repeats))

    def attention(self) -> None:
        """Time the kernels of attention on the two largest kinds: in a frame, and along frames."""
        if self.device.type != "cuda":
            return
        pixels, frames = self.options.height * self.options.width // 64, self.options.frames
        tokens = torch.randn(frames, pixels, 5, 64, device=self.device, dtype=self.dtype)
        kinds = {"in_frame": tokens.transpose(1, 2), "along_frames": tokens.permute(1, 2, 0, 3)}
        backends = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
        for kind, x in kinds.items():
            for backend in backends:
                with sdpa_kernel(getattr(SDPBackend, backend)):
                    work = lambda x=x: nn.functional.scaled_dot_product_attention(x, x, x)  # noqa: E731
                    self.report.add("attention", **{f"{kind}_{backend.lower()}": timed(work, 10)})

    def released(self) -> None:
        """Time the teacher as it was released: float32 weights, float16 autocast, not compiled."""
        self.rig.pipeline.to(torch.float32)
        steps = self.options.teacher_steps
        with (
            torch.compiler.set_stance("force_eager"),
            torch.autocast(self.device.type, torch.float16),
        ):
            self.report.add("released", unet=timed(self.rig.unet, 5))
            began = time.perf_counter()
            self.rig.teacher(steps, batched=False)
            wait()
            self.report.add("released", teacher_s=time.perf_counter() - began)

    def _record(self, name: str) -> None:
        """Evaluate each step at the float32 trajectory's latents, and the student as a whole."""
        if not self.steps:
            return
        before = [self.rig.latents, *(step.x for step in self.steps[:-1])]
        self.outputs[name] = [
            self.rig.unet(x_t, step.t).cpu() for x_t, step in zip(before, self.steps, strict=True)
        ]
        if name not in self.frames:
            self.frames[name] = self.rig.student().cpu()
        self.frames[f"{name} decoding"] = self.rig.decode(self.steps[-1].x0).cpu()


class _Last(nn.Module):
    """Keeps a channels-last layout."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


ESTIMATES = {
    "compiled": 100.0,
    "start": 60.0,
    "eager_teacher": 25.0,
    "compiled_teacher": 16.0,
    "released": 18.0,
}
"""Seconds that long parts take on one H100; others take less than 10."""


@torch.no_grad()
def _quick(module: nn.Module, x: Tensor) -> float:
    return timed(lambda: module(x), 5)["median_s"]


def run_parts(benchmark: Benchmark, options: Options, report: Report) -> None:
    """Run the parts in order; one that fails is noted and the next one begins."""
    for name in options.parts.split(","):
        if time.perf_counter() - START + ESTIMATES.get(name, 10.0) > options.limit:
            report.add("left_out", **{name: "no time left"})
            continue
        part: Callable[[], None] = getattr(benchmark, name)
        try:
            part()
        except Exception as error:  # Later parts may still work, and earlier results are safe.
            traceback.print_exc()
            report.add("failed", **{name: f"{type(error).__name__}: {str(error)[:300]}"})


def measure_start(options: Options, device: torch.device) -> None:
    """Print how long loading saved kernels and making a first clip take in a fresh process."""
    shape = Shape(frames=options.frames, height=options.height, width=options.width)
    rig = Rig(shape, device, small=options.small)
    rig.pipeline.to(torch.bfloat16)
    began = time.perf_counter()
    rig.pipeline.enable_compilation(
        options.mode,
        merge_upsampling=options.upsampling != "plain",
        kernels=options.start_with,
    )
    enabled = time.perf_counter()
    result = timed(rig.student, 2)
    facts = {
        "load_kernels_s": enabled - began,
        "warm_first_clip_s": result["first_s"],
        "warm_later_clip_s": result["median_s"],
    }
    print(json.dumps(facts))


def main(options: Options) -> None:
    """Run the parts."""
    if options.small:
        options = replace(options, height=32, width=48, repeats=4, teacher_steps=2, limit=1e9)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.start_with is not None:
        measure_start(options, device)
        return
    report = Report(options.out)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    report.add("card", name=name, torch=torch.__version__)
    benchmark = Benchmark(options, device, report)
    report.add("card", ready_s=time.perf_counter() - START)
    run_parts(benchmark, options, report)


def _short(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, dict) and "median_s" in value:
        low, high = value["min_s"] * 1e3, value["max_s"] * 1e3
        return (
            f"{value['median_s'] * 1e3:.1f} ms ({low:.1f} to {high:.1f}, first "
            f"{value['first_s']:.1f} s)"
        )
    if isinstance(value, dict):
        return "{" + _short(value) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

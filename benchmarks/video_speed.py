"""Seconds, memory and precision of the full-size video model with random weights.

Teacher and student run side by side in one process. Each result is printed and written as soon as
it is known, the most important ones first; no part begins that would not end in time.

Usage:
    python benchmarks/video_speed.py --out benchmarks/results/video.json
    python benchmarks/video_speed.py --out video.json --small  # the same code on a CPU
"""

import gc
import math
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from video_profile import kernel_shares, operator_shares
from video_rig import (
    Rig,
    Shape,
    matrix_rate,
    operations,
    peak_gib,
    plain_convolutions,
    psnr,
    relative_error,
    timed,
    wait,
)
from video_start import Options as StartOptions
from video_start import start
from video_variants import (
    attention_ways,
    layer_ways,
    picture_attention_ways,
    projection_ways,
    upsampling_ways,
)

from fvgen_recon.diffusion.sampler import SampleStep
from fvgen_recon.diffusion.viewcrafter.kernel import save_kernels
from fvgen_recon.diffusion.viewcrafter.student import FVGenPipeline
from fvgen_recon.io.file import write_json

START = time.perf_counter()


@dataclass(frozen=True)
class Options:
    """What to measure."""

    out: Path
    """JSON file with the results."""
    parts: str = (
        "eager,eager_teacher,fast,profile,fast_teacher,precision,start,ways,memory,released,"
        "low_memory,large,compiled,compiled_start,layers"
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
    teacher_repeats: int = 2
    """Timed repetitions of the teacher, after one that is not counted."""
    limit: float = 300.0
    """Seconds after which no part begins."""
    mode: str = "default"
    """Mode of `torch.compile`."""
    small: bool = False
    """A narrow network, few repetitions, small frames: to try the script without a GPU."""


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
        self.shape = shape
        self.rig = Rig(shape, device, small=options.small)
        self.dtype = torch.bfloat16
        self.steps: list[SampleStep] = []
        self.outputs: dict[str, list[Tensor]] = {}
        self.frames: dict[str, Tensor] = {}
        self.rig.pipeline.to(self.dtype)

    def eager(self) -> None:
        """Time each part and the student without compilation; count operations."""
        torch.backends.cudnn.benchmark = True
        rig, repeats = self.rig, max(2, self.options.repeats // 2)
        for name in ("encode", "unet", "decode", "student"):
            self.report.add("eager", **{name: timed(getattr(rig, name), repeats)})
        counts = {name: operations(getattr(rig, name)) for name in ("encode", "unet", "decode")}
        counts["student"] = counts["encode"] + 4 * counts["unet"] + counts["decode"]
        self.report.add("operations", **counts)
        size = 256 if self.options.small else 8192
        self.report.add("card", matrix_rate=matrix_rate(self.device, size))
        self.report.add("eager", student_memory=peak_gib(rig.student))

    def eager_teacher(self) -> None:
        """Time the teacher without compilation, both branches of guidance as one batch."""
        self.rig.teacher(2, batched=True)
        work = lambda: self.rig.teacher(self.options.teacher_steps, batched=True)  # noqa: E731
        self.report.add("eager", teacher=timed(work, self.options.teacher_repeats))

    def fast(self) -> None:
        """Time each part and the student again with this project's kernels."""
        began = time.perf_counter()
        self.rig.pipeline.enable_kernels()
        kinds = Counter(type(module).__name__ for module in self.rig.pipeline.unet.modules())
        layers = {name: count for name, count in kinds.items() if name.startswith("Fused")}
        self.report.add("fast", enable_s=time.perf_counter() - began, layers=layers)
        self._measure("fast")
        self.report.add("fast", clip=timed(self.rig.clip, self.options.repeats // 2))

    def compiled(self) -> None:
        """Compile a plain model, and time each part and the student again."""
        self._begin_anew().to(self.dtype)
        self.rig.pipeline.enable_compilation(self.options.mode)
        self._measure("compiled")

    def _measure(self, name: str) -> None:
        report, rate = self.report, self.report.content["card"].get("matrix_rate", math.nan)
        for part in ("encode", "decode", "unet", "student"):
            report.add(name, **{part: timed(getattr(self.rig, part), self.options.repeats)})
        results = report.content[name]
        shares = {
            part: count / results[part]["median_s"] / rate
            for part, count in report.content.get("operations", {}).items()
        }
        report.add(f"{name}_fraction_of_matrix_rate", **shares)
        report.add(name, student_memory=peak_gib(self.rig.student))

    def profile(self) -> None:
        """Say which kinds of kernels take the time of each part of one student's clip."""
        unet = self.rig.pipeline.unet
        for name in ("encode", "unet", "decode", "student"):
            self.report.add("kernels", **{name: kernel_shares(getattr(self.rig, name))})
        vae = self.rig.pipeline.vae
        networks = [unet, vae.encoder, vae.decoder]
        recorded = [network.forward for network in networks]
        for network in networks:
            network.forward = getattr(network.forward, "plain", network.forward)
        for name in ("encode", "unet", "decode"):
            work = getattr(self.rig, name)
            self.report.add("fast", **{f"{name}_queued_one_by_one": timed(work, 5)})
            self.report.add("operators", **{name: operator_shares(work)})
        for network, forward in zip(networks, recorded, strict=True):
            network.forward = forward

    def fast_teacher(self) -> None:
        """Time the teacher with this project's kernels, both branches of guidance as one batch."""
        work = lambda: self.rig.teacher(self.options.teacher_steps, batched=True)  # noqa: E731
        self.report.add("fast", teacher=timed(work, self.options.teacher_repeats))
        results = self.report.content
        student = results["fast"]["student"]["median_s"]
        ratios = {
            f"over_{name}_teacher": results[name]["teacher"]["median_s"] / student
            for name in ("eager", "fast")
            if "teacher" in results.get(name, {})
        }
        self.report.add("speedup_of_fast_student", **ratios)

    def precision(self) -> None:
        """Compare outputs of each step, and frames, in float32, bfloat16 and fast."""
        with plain_convolutions():
            rig = Rig(self.shape, self.device, small=self.options.small)
            self.frames["float32"] = rig.student(self.steps.append).cpu()
            self._record("float32", rig)
            rig.pipeline.to(self.dtype)
            self._record("eager", rig)
        compared = [("eager", "float32")]
        if "fast" in self.report.content:
            self._record("fast", self.rig)
            compared += [("fast", "float32"), ("fast", "eager")]
        for a, b in compared:
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
        """Time a fresh process with this project's kernels, first with nothing compiled before."""
        gc.collect()
        torch.cuda.empty_cache()  # The other process needs the room.
        with tempfile.TemporaryDirectory() as folder:
            for name in ("first_process", "later_process"):
                facts = start(self._start_options("kernels"), Path(folder), 120)
                self.report.add("start", **{name: facts})

    def compiled_start(self) -> None:
        """Save what was compiled and let a second process with an empty cache begin with it."""
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "kernels.bin"
            began = time.perf_counter()
            size = save_kernels(saved)
            facts = {"save_s": time.perf_counter() - began, "megabytes": size / 1e6}
            options = replace(self._start_options("compiled"), saved=saved)
            facts |= start(options, Path(folder), 1800 if self.device.type == "cpu" else 150)
            self.report.add("start", compiled=facts)

    def _start_options(self, kind: Literal["kernels", "compiled"]) -> StartOptions:
        shape = self.shape
        return StartOptions(
            kind=kind,
            frames=shape.frames,
            height=shape.height,
            width=shape.width,
            small=self.options.small,
        )

    def memory(self) -> None:
        """Measure the most memory of a whole pipeline call with kernels and nothing else around."""
        self._begin_anew().to(self.dtype).enable_kernels()
        self.report.add("memory", fast_clip=peak_gib(self.rig.clip))

    def low_memory(self) -> None:
        """Measure a plain call in the modes that save memory."""
        self._begin_anew().to(self.dtype)
        self.rig.pipeline.enable_vae_slicing()
        self.rig.pipeline.enable_feed_forward_chunking()
        self.report.add("memory", low_memory_clip=peak_gib(self.rig.clip))
        self.report.add("memory", low_memory_seconds=timed(self.rig.clip, 2))

    def large(self) -> None:
        """Run the student on 25 frames of 576x1024, without compilation."""
        small = self.options.small
        shape = Shape(frames=25, height=32 if small else 576, width=32 if small else 1024)
        self._begin_anew().to(self.dtype)
        self.rig.use_shape(shape)
        self.report.add("large", clip=timed(self.rig.clip, 1))
        self.report.add("large", memory=peak_gib(self.rig.clip))

    def ways(self) -> None:
        """Time other ways to compute attention and projections."""
        if self.device.type != "cuda":
            return
        for ways in (upsampling_ways, attention_ways, projection_ways, picture_attention_ways):
            for name, result in ways(self.rig):
                self.report.add("ways", **{name: result})

    def layers(self) -> None:
        """Time other ways to compile layers, as long as there is time."""
        self._begin_anew().to(self.dtype)
        for name, work in layer_ways(self.rig):
            if time.perf_counter() - START + ESTIMATES["layer"] > self.options.limit:
                self.report.add("left_out", **{name: "no time left"})
                continue
            try:
                self.report.add("ways", **{name: work()})
            except Exception as error:  # Other ways may work.
                self.report.add("failed", **{name: f"{type(error).__name__}: {str(error)[:300]}"})

    def released(self) -> None:
        """Time the teacher as it was released: float32 weights, float16 autocast, not compiled."""
        self._begin_anew()
        with torch.autocast(self.device.type, torch.float16):
            self.report.add("released", unet=timed(self.rig.unet, 5))
            began = time.perf_counter()
            self.rig.teacher(self.options.teacher_steps, batched=False)
            wait()
            self.report.add("released", teacher_s=time.perf_counter() - began)

    def _begin_anew(self) -> FVGenPipeline:
        """Give up the model and build a plain one, in float32."""
        del self.rig
        torch.compiler.reset()
        gc.collect()
        with plain_convolutions():
            self.rig = Rig(self.shape, self.device, small=self.options.small)
        return self.rig.pipeline

    def _record(self, name: str, rig: Rig) -> None:
        """Evaluate each step at the float32 trajectory's latents, and the student as a whole."""
        before = [rig.latents, *(step.x for step in self.steps[:-1])]
        self.outputs[name] = [
            rig.unet(x_t, step.t).cpu() for x_t, step in zip(before, self.steps, strict=True)
        ]
        if name not in self.frames:
            self.frames[name] = rig.student().cpu()
        self.frames[f"{name} decoding"] = rig.decode(self.steps[-1].x0).cpu()


ESTIMATES = {
    "compiled": 330.0,
    "compiled_start": 60.0,
    "start": 45.0,
    "eager_teacher": 25.0,
    "fast_teacher": 16.0,
    "released": 28.0,
    "precision": 25.0,
    "large": 28.0,
    "low_memory": 15.0,
    "layer": 15.0,
}
"""Seconds that long parts take on one H100; others take less than 10."""


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


def main(options: Options) -> None:
    """Run the parts."""
    if options.small:
        options = replace(options, height=32, width=48, repeats=4, teacher_steps=2, limit=1e9)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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

"""Which kinds of kernels a call spends its time in."""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from video_rig import wait

KINDS = {
    "attention": r"flash|fmha|attention|sdpa",
    "change of layout": r"nchwtonhwc|nhwctonchw",
    "convolution": r"fprop|dgrad|conv|implicit",
    "matrix product": r"nvjet|gemm|cublas|splitk|addmm|linear|mm_",
    "group norm": r"_(sum|join|apply)_kernel",
    "reduction": r"triton_(red|per)|reduce|norm",
    "elementwise": r"triton_poi|elementwise|vectorized|copy|cat|upsample|_add_kernel|gelu",
    "transfer": r"memcpy|memset",
}
"""Kernel names by kind, first match wins."""

_SHOWN = 30


def kernel_shares(work: Callable[[], Any]) -> dict[str, Any]:
    """Return milliseconds by kind of kernel, and the kernels that take the most.

    Without a GPU, operators of the CPU stand for kernels.
    """
    work()
    wait()
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with profile(activities=activities) as trace:
        work()
        wait()
    kinds: dict[str, float] = defaultdict(float)
    names: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in trace.events() or ():
        spent = _milliseconds(event, on_gpu)
        if spent:
            kinds[_kind(event.name)] += spent
            names[event.name[:120]][0] += spent
            names[event.name[:120]][1] += 1
    longest = sorted(names.items(), key=lambda item: -item[1][0])[:_SHOWN]
    return {
        "milliseconds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "calls": sum(count for _, count in names.values()),
        "longest": {name: {"ms": ms, "calls": count} for name, (ms, count) in longest},
    }


def operator_shares(work: Callable[[], Any]) -> list[dict[str, Any]]:
    """Return the operators that take the most, by the shapes of their inputs."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True) as trace:
        work()
        wait()
    rows = []
    for event in trace.key_averages(group_by_input_shape=True):
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if event.key.startswith("aten::") and spent:
            shapes = [shape for shape in event.input_shapes if len(shape) > 1]
            rows.append(
                {"name": event.key, "shapes": shapes, "ms": spent / 1e3, "calls": event.count}
            )
    return sorted(rows, key=lambda row: -row["ms"])[:_SHOWN]


def _milliseconds(event: FunctionEvent, on_gpu: bool) -> float:
    if on_gpu:
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        return event.self_device_time_total / 1e3 if is_kernel else 0.0
    return event.self_cpu_time_total / 1e3


def _kind(name: str) -> str:
    lower = name.lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, lower)), "other")

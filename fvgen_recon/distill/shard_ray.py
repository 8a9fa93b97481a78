"""Shards made by many machines at once on Ray; the output folder must be one that all of them see.

A shard is one task. When a worker or its machine dies, Ray runs the task again elsewhere; as a
shard appears only when complete, and under one name, nothing is lost and nothing is there twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvgen_recon.distill.shard_build import Share, build_shard, load_codec, pending_shards
from fvgen_recon.distill.shard_file import ShardRecord
from fvgen_recon.distill.shard_plan import ShardPlan, read_plan
from fvgen_recon.errors import MissingDependencyError, TrainingError

TASK = "make_shard"
_START_TRIES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class RaySettings:
    """Where the workers are and what each of them gets."""

    address: str | None = None
    """Address of a running cluster, or `auto`; none starts one on this machine."""
    num_workers: int | None = None
    """Workers of a cluster started here; by default one a core."""
    cpus: float = 1
    """Cores of a worker."""
    gpus: float = 0
    """GPUs of a worker; fractions share one."""
    max_retries: int = 10
    """How often a shard is begun anew after its worker died."""


def build_shards_on_ray(
    root: Path,
    folder: Path,
    plan: ShardPlan,
    settings: RaySettings,
    *,
    report: Callable[[ShardRecord], None],
) -> int:
    """Make the shards that are not there yet, on a Ray cluster.

    Args:
        root: The data folder, as every worker sees it.
        folder: Where the shards go, as every worker sees it; holds the plan.
        plan: What to make.
        settings: The cluster.
        report: Called after each shard.

    Returns:
        How many shards were made.

    Raises:
        MissingDependencyError: Ray is not installed.
        TrainingError: The cluster does not start, or a shard's worker died again and again.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise MissingDependencyError(
            "Preparing on several machines needs Ray: `pip install fvgen-recon[ray]`, or use "
            "--shard on each machine."
        ) from error
    numbers = pending_shards(folder, plan, Share())
    if not numbers:
        return 0
    started = not ray.is_initialized()
    if started:
        _join_cluster(settings)
    try:
        task = ray.remote(_make_shard).options(
            name=TASK,
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            max_retries=settings.max_retries,
        )
        waiting = [task.remote(str(root), str(folder), n, settings.gpus > 0) for n in numbers]
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            report(ray.get(ready[0]))
    except RayTaskError as error:
        raise error.as_instanceof_cause() from error
    except RayError as error:
        raise TrainingError(
            f"A worker died more than {settings.max_retries} times over one shard ({error}): look "
            "at its memory, then run the same command again."
        ) from error
    finally:
        if started:
            ray.shutdown()
    return len(numbers)


def _join_cluster(settings: RaySettings) -> None:
    """Connect to the cluster, or start one here; a busy machine may need more than one try."""
    import ray

    local: dict[str, Any] = {"num_cpus": settings.num_workers, "include_dashboard": False}
    where: dict[str, Any] = {"address": settings.address} if settings.address else local
    for left in reversed(range(_START_TRIES)):
        try:
            ray.init(log_to_driver=False, **where)
            return
        except Exception as error:  # Ray raises plain exceptions here.
            ray.shutdown()
            if left == 0:
                raise TrainingError(
                    f"The Ray cluster could not be reached or started ({error}): check its address "
                    "and that this machine is not overloaded, or use --shard."
                ) from error


def _make_shard(root: str, folder: str, number: int, on_gpu: bool) -> ShardRecord:
    """Run in a worker: read the plan from the shared folder and make one shard of it."""
    import torch

    device = torch.device("cuda" if on_gpu else "cpu")
    plan = read_plan(Path(folder))
    codec = load_codec(plan.settings, device)
    return build_shard(Path(root), Path(folder), plan, number, codec=codec, device=device)

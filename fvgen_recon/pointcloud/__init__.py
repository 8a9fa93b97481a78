"""Posed photos to point clouds: estimators by name."""

from collections.abc import Callable

from fvgen_recon.errors import InputError
from fvgen_recon.pointcloud.base import PointCloudEstimator
from fvgen_recon.pointcloud.combined import CombinedStereo
from fvgen_recon.pointcloud.dataset import DatasetPoints
from fvgen_recon.pointcloud.dust3r import Dust3r
from fvgen_recon.pointcloud.frustum import RandomPoints
from fvgen_recon.pointcloud.mvs.estimator import LearnedStereo
from fvgen_recon.pointcloud.plane_sweep import PlaneSweep

ESTIMATORS: dict[str, Callable[[], PointCloudEstimator]] = {
    "plane-sweep": PlaneSweep,
    "mvs": LearnedStereo,
    "stereo": CombinedStereo,
    "dataset": DatasetPoints,
    "dust3r": Dust3r,
    "random": RandomPoints,
}
"""Point-cloud sources by the name a user chooses; calling one gives its default settings."""


def make_estimator(name: str) -> PointCloudEstimator:
    """Return a point-cloud source by name, with its default settings.

    Raises:
        InputError: There is no such source.
    """
    if name not in ESTIMATORS:
        known = ", ".join(ESTIMATORS)
        raise InputError(f"There is no point-cloud estimator `{name}`: choose one of {known}.")
    return ESTIMATORS[name]()

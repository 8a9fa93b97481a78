"""The seam for point-cloud sources."""

from typing import Protocol, runtime_checkable

from fvgen_recon.types import PointCloud, Scene


@runtime_checkable
class PointCloudEstimator(Protocol):
    """Turns the chosen input views, and nothing else, into a point cloud in the scene's frame."""

    def estimate(self, scene: Scene) -> PointCloud:
        """Return world points with colours and confidences.

        Raises:
            InputError: The views do not overlap or are too few for this source.
        """
        ...

"""The points that came with a scene."""

from dataclasses import dataclass

from fvgen_recon.errors import InputError
from fvgen_recon.types import PointCloud, Scene


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetPoints:
    """Points of the scene's own reconstruction, limited to tracks in two or more input views.

    This uses more than the input views: the points were triangulated, and the poses refined,
    with every photo of the capture, held-out ones included. Use it to see what better geometry
    would give, not to compare methods on sparse views.
    """

    def estimate(self, scene: Scene) -> PointCloud:
        """Return the scene's points.

        Raises:
            InputError: The scene came without points that two input views see.
        """
        if scene.points is None or len(scene.points) == 0:
            raise InputError(
                "The scene holds no points that two of the input views see: choose more views or "
                "the point-cloud estimator `plane-sweep`, which needs none."
            )
        return scene.points

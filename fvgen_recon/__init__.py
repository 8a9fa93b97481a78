"""From a handful of posed photos to a clean 3D Gaussian splat.

The package is a pipeline of frozen types: posed photos (`Scene`) become a point cloud
(`PointCloud`), camera paths between the inputs (`Trajectory`), point renders (`Guidance`),
generated frames (`Clip`) and finally weighted training views (`ViewBatch`).
"""

__version__ = "0.1.0"

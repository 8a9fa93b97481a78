"""What is said of input photos that the others hardly show."""

import pytest
import torch

from fvgen_recon.pointcloud.overlap import describe_overlap, found_share
from fvgen_recon.types import PointCloud

NAMES = tuple(f"{i}.jpg" for i in range(6))


def _cloud(*trusted: int, total: int = 20, view: list[int] | None = None) -> PointCloud:
    """So many trusted points of `total` in each view."""
    confidence = torch.cat([(torch.arange(total) < count) * 0.6 + 0.2 for count in trusted])
    views = torch.arange(len(trusted)) if view is None else torch.tensor(view)
    return PointCloud(
        xyz=torch.zeros(len(confidence), 3),
        rgb=torch.zeros(len(confidence), 3),
        confidence=confidence,
        view=views.repeat_interleave(total),
    )


def test_shares_are_those_of_each_photo():
    share = found_share(_cloud(5, 20, 0), 4)
    assert share[:3].tolist() == [0.25, 1.0, 0.0]
    assert share[3].isnan()


def test_photos_that_others_hardly_show_are_named_the_least_seen_first():
    line = describe_overlap([_cloud(3, 20, 4, 0)], NAMES[:4])
    assert line.startswith("Little of 3.jpg (0 %), 0.jpg (15 %) was found in the other input")
    assert line.endswith("or choose others.")
    assert describe_overlap([_cloud(0, 20)], NAMES[:2], "--names").endswith("others (--names).")


def test_many_such_photos_are_counted():
    line = describe_overlap([_cloud(0, 0, 0, 0, 1, 1)], NAMES)
    assert "3.jpg (0 %) and 2 more was found" in line


@pytest.mark.parametrize(
    "clouds",
    [
        (_cloud(4, 20, 20, 20, 20, 20),),
        (_cloud(0, 20, 20, 20, 20, 20), _cloud(9, 20, 20, 20, 20, 20)),  # A member found it.
        (_cloud(0, view=[-1]),),  # Points of the scene's own say nothing about photos.
    ],
)
def test_nothing_is_said_where_photos_overlap_or_nothing_is_known(clouds):
    assert describe_overlap(clouds, NAMES) == ""

"""What a run says of input photos that the others hardly show."""

from types import SimpleNamespace

import pytest
import torch
from pipelines import open_pipeline, start_run, write_room

from fvgen_nerfstudio import pipeline as pipeline_module
from fvgen_nerfstudio.dataparser import FvgenDataParser
from fvgen_nerfstudio.overlap import describe_overlap, found_share
from fvgen_recon.types import PointCloud


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


def _parser(*clouds: PointCloud, num_photos: int = 6, estimator: str = "stereo") -> FvgenDataParser:
    names = [f"{i}.jpg" for i in range(2 * num_photos)]
    source = SimpleNamespace(
        capture=SimpleNamespace(names=names),
        split=SimpleNamespace(inputs=tuple(range(0, 2 * num_photos, 2))),
    )
    config = SimpleNamespace(estimator=estimator)
    return SimpleNamespace(config=config, source=source, members=clouds)  # pyright: ignore


def test_shares_are_those_of_each_photo():
    share = found_share(_cloud(5, 20, 0), 4)
    assert share[:3].tolist() == [0.25, 1.0, 0.0]
    assert share[3].isnan()


def test_photos_that_others_hardly_show_are_named_the_least_seen_first():
    line = describe_overlap(_parser(_cloud(3, 20, 4, 0), num_photos=4))
    assert line.startswith("Little of 6.jpg (0 %), 0.jpg (15 %) was found in the other input")


def test_many_such_photos_are_counted():
    line = describe_overlap(_parser(_cloud(0, 0, 0, 0, 1, 1)))
    assert "6.jpg (0 %) and 2 more was found" in line


@pytest.mark.parametrize(
    "clouds",
    [
        (_cloud(4, 20, 20, 20, 20, 20),),
        (_cloud(0, 20, 20, 20, 20, 20), _cloud(9, 20, 20, 20, 20, 20)),  # A member found it.
        (_cloud(0, view=[-1]),),  # Points of the scene's own say nothing about photos.
    ],
)
def test_nothing_is_said_where_photos_overlap_or_nothing_is_known(clouds):
    assert describe_overlap(_parser(*clouds)) == ""


def test_random_points_were_not_sought_in_the_photos():
    assert describe_overlap(_parser(_cloud(0, 0), estimator="random")) == ""


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_a_run_says_so_once_before_it_trains(tmp_path, monkeypatch, share):
    write_room(tmp_path / "room")
    find = FvgenDataParser._points_as_shot.func

    def find_less(self: FvgenDataParser) -> PointCloud:
        cloud = find(self)
        kept = cloud.confidence.clone()
        kept[cloud.view == 1] *= torch.arange(int((cloud.view == 1).sum())) % 100 < 100 * share
        return PointCloud(xyz=cloud.xyz, rgb=cloud.rgb, confidence=kept, view=cloud.view)

    monkeypatch.setattr(FvgenDataParser._points_as_shot, "func", find_less)
    lines: list[str] = []
    pipeline = open_pipeline(
        tmp_path / "room", estimator="plane-sweep", generator="none", strategy="none"
    )
    monkeypatch.setattr(pipeline_module.CONSOLE, "log", lambda line: lines.append(str(line)))
    start_run(pipeline, tmp_path / "run")
    assert sum("Little of images/1.png" in line for line in lines) == (share < 0.2)

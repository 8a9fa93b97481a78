"""What a run says of input photos that the others hardly show."""

from types import SimpleNamespace

import pytest
import torch
from pipelines import open_pipeline, start_run, write_room

from fvgen_nerfstudio import pipeline as pipeline_module
from fvgen_nerfstudio.dataparser import FvgenDataParser
from fvgen_nerfstudio.overlap import describe_overlap
from fvgen_recon.types import PointCloud


def test_random_points_were_not_sought_in_the_photos():
    cloud = PointCloud(
        xyz=torch.zeros(2, 3),
        rgb=torch.zeros(2, 3),
        confidence=torch.zeros(2),
        view=torch.arange(2),
    )

    def describe(estimator: str) -> str:
        config = SimpleNamespace(estimator=estimator)
        return describe_overlap(
            SimpleNamespace(config=config, members=(cloud,), input_names=("a.jpg", "b.jpg"))  # pyright: ignore
        )

    assert "Little of a.jpg (0 %), b.jpg (0 %)" in describe("stereo")
    assert "dataparser.view-names" in describe("stereo")
    assert describe("random") == ""


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

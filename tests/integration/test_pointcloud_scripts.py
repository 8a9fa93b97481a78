"""What the scripts that judge point clouds find in a small room whose points are known."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from room_folder import write_room

from fvgen_recon.geometry.projection import project_points, unproject_depth
from fvgen_recon.io.scenes import load_capture
from fvgen_recon.render.procedural import random_scene, render_procedural
from fvgen_recon.types import Cameras
from scripts import calibrate_sweep, compare_pointclouds

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("scenes")
    for seed, name in enumerate(("first", "second")):
        add_tracks(write_room(base / name, seed=seed, num_photos=9, height=72, width=96), seed)
    (base / "notes").mkdir()  # No scene: it is passed over.
    return base


def add_tracks(folder: Path, seed: int) -> None:
    """Write true points of every photo, and which photos have them inside their picture."""
    cameras = load_capture(folder).cameras
    batch = Cameras(
        c2w=torch.stack([camera.c2w for camera in cameras]),
        K=torch.stack([camera.K for camera in cameras]),
        height=cameras[0].height,
        width=cameras[0].width,
    )
    depth = render_procedural(random_scene(seed), batch, supersample=1).depth
    xyz = unproject_depth(depth, batch)[0][:, ::6, ::6].reshape(-1, 3)
    seen = []
    for frame, camera in enumerate(cameras):
        uv, z = project_points(xyz, camera)
        limit = torch.tensor([camera.width, camera.height])
        inside = ((z > 0) & ((uv >= 0) & (uv < limit)).all(-1)).nonzero()[:, 0]
        column, row = uv[inside].long().unbind(-1)
        visible = (depth[frame, row, column] / z[inside] - 1).abs() < 0.02
        seen += [(int(point), frame, *uv[point].tolist()) for point in inside[visible]]
    table = np.array(seen)
    np.savez(
        folder / "tracks.npz",
        xyz=xyz.numpy(),
        rgb=np.zeros((len(xyz), 3), np.uint8),
        obs_point=table[:, 0].astype(np.int64),
        obs_frame=table[:, 1].astype(np.int64),
        obs_uv=table[:, 2:].astype(np.float32),
    )


def test_sources_are_compared_and_the_numbers_say_where_they_come_from(
    scenes: Path, tmp_path: Path
) -> None:
    options = compare_pointclouds.Options(
        scenes=(scenes,),
        output=tmp_path / "out",
        angles=(12.0,),
        long_side=96,
        estimators=("plane-sweep", "random"),
        max_held_out=1,
        device="cpu",
    )
    compare_pointclouds.compare(options)
    content = json.loads((tmp_path / "out" / "cases.json").read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert content["options"]["estimators"] == ["plane-sweep", "random"]
    assert str(scenes) not in json.dumps(content)
    rows = {row["estimator"]: row for row in content["rows"] if row["case"].startswith("first")}
    assert rows["plane-sweep"]["psnr_filled"] > rows["random"]["psnr_filled"]
    assert rows["plane-sweep"]["tracks_right"] > 0.8
    assert len(content["rows"]) == 4
    assert (tmp_path / "out" / "first_12deg.jpg").is_file()
    assert "| plane-sweep | 2 |" in (tmp_path / "out" / "table.md").read_text()


def test_claims_of_the_sweep_are_judged_on_scenes_that_they_were_not_fitted_to(
    scenes: Path, tmp_path: Path
) -> None:
    args = calibrate_sweep.Arguments(
        scenes=scenes, out=tmp_path, long_sides=(96,), angles=(12.0,), points=60, folds=2
    )
    calibrate_sweep.main(args)
    table = (tmp_path / "table.md").read_text()
    for name in ("mvs", "plane-sweep", "plane-sweep, fitted again", "stereo"):
        assert f"| {name} |" in table
    assert re.search(r"Weights, the bias last: (-?\d+\.\d+(, )?)+\n", table)
    assert torch.is_grad_enabled()

"""Exported opacities: what they are worth together, and that nothing but a file has them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines import advance, open_pipeline, start_run, write_room

from fvgen_nerfstudio.camera import to_nerfstudio
from fvgen_nerfstudio.export import stand_in_for_open3d
from fvgen_nerfstudio.opacity import repeat_opacity
from fvgen_nerfstudio.pipeline import FvgenPipeline

SOURCES = ("plane-sweep", "plane-sweep")


@pytest.mark.parametrize("times", [1 / 3, 0.5, 1.0, 2.0, 7.0])
def test_so_many_gaussians_at_one_place_are_as_opaque_as_one(times):
    logits = torch.linspace(-9, 9, 37, dtype=torch.float64)
    seen_through = 1 - torch.sigmoid(repeat_opacity(logits, times))
    torch.testing.assert_close(seen_through, (1 - torch.sigmoid(logits)) ** times)
    torch.testing.assert_close(repeat_opacity(repeat_opacity(logits, times), 1 / times), logits)


def test_extreme_opacities_stay_finite():
    logits = torch.tensor([-300.0, -90.0, 90.0, 300.0])
    for times in (1e-2, 1.0, 1e2):
        repeated = repeat_opacity(logits, times)
        assert repeated.isfinite().all()
        assert (repeated.diff() >= 0).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> FvgenPipeline:
    """Return a splat of two members after a few steps."""
    folder = tmp_path_factory.mktemp("room")
    write_room(folder)
    pipeline = open_pipeline(folder, ensemble=SOURCES, strategy="none", generator="none")
    advance(pipeline, start_run(pipeline, folder / "run"), range(4))
    return pipeline.eval()


def _export(pipeline: FvgenPipeline, folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Return the table of numbers, one row a Gaussian, that nerfstudio's exporter writes."""
    monkeypatch.setitem(sys.modules, "open3d", sys.modules.get("open3d"))
    monkeypatch.delitem(sys.modules, "open3d")
    stand_in_for_open3d()
    from nerfstudio.scripts import exporter

    monkeypatch.setattr(exporter, "eval_setup", lambda *_, **__: (None, pipeline, None, 0))
    exporter.ExportGaussianSplat(load_config=folder / "config.yml", output_dir=folder).main()
    header, _, body = (folder / "splat.ply").read_bytes().partition(b"end_header\n")
    names = [line.split()[-1].decode() for line in header.splitlines() if b"property" in line]
    table = np.frombuffer(body, dtype="<f4").reshape(-1, len(names))
    return table[:, names.index("opacity")]


@pytest.mark.parametrize("times", [1.0, 0.5, 3.0])
def test_a_file_has_the_opacities_asked_for_and_nothing_else_changes(
    trained, tmp_path, monkeypatch, times
):
    model, camera = trained.model, to_nerfstudio(trained.datamanager.scene.cameras[1])
    own = model.gauss_params["opacities"]
    with torch.no_grad():
        before = model.get_outputs_for_camera(camera)["rgb"]
        monkeypatch.setattr(model.config, "export_opacity", times)
        after = model.get_outputs_for_camera(camera)["rgb"]
    assert torch.equal(before, after)
    state = trained.state_dict()["_model.gauss_params.opacities"]
    assert torch.equal(state, own)
    assert model.train().opacities is own
    model.eval()
    written = torch.from_numpy(_export(trained, tmp_path, monkeypatch).copy())
    expected = torch.logit(1 - (1 - torch.sigmoid(own.detach().double())) ** times)[:, 0]
    assert len(written) == len(own)
    torch.testing.assert_close(written.double(), expected, atol=1e-4, rtol=1e-4)
    assert (times == 1.0) == torch.allclose(written, own[:, 0].detach())

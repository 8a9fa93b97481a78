"""Which trials make samples for the fusion: inputs, poses, order, and what becomes of failures."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fvgen_recon.errors import InputError
from fvgen_recon.fusion.sample import make_sample, read_sample, unpack_planes, write_sample
from fvgen_recon.fusion.view import FusionView, ViewFacts
from fvgen_recon.io.image import write_image
from fvgen_recon.io.scenes import write_transforms
from fvgen_recon.render.procedural import arc_cameras

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
NUM_PHOTOS = {"hall": 20, "nook": 5}


@pytest.fixture
def samples(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fusion_samples")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes whose photos tell their place by their brightness."""
    folder = tmp_path_factory.mktemp("scenes")
    for scene, count in NUM_PHOTOS.items():
        angles = torch.linspace(-20, 20, count).tolist()
        cameras = arc_cameras(angles, radius=3.0, height=12, width=16)
        names = tuple(f"images/{i:02d}.png" for i in range(count))
        for place, name in enumerate(names):
            write_image(folder / scene / name, torch.full((3, 12, 16), place / 40))
        write_transforms(folder / scene, cameras, names)
    return folder


@pytest.fixture
def args(samples, data, tmp_path):
    return samples.Arguments(
        data=data, out=tmp_path / "samples", work=tmp_path / "work", device="cpu", budget_s=60
    )


def test_inputs_never_are_poses_to_render(samples, args):
    for count in (2, 3, 6):
        for choice in range(4):
            split = samples.choose_views(20, count, choice, f"{count}{choice}", args)
            assert len(split.inputs) == count
            assert 2 <= len(split.test) <= 8
            assert not set(split.inputs) & set(split.test)
            assert max(split.inputs + split.test) < 20
    assert samples.choose_views(20, 3, 0, "", args).inputs == (0, 10, 19)
    arc = samples.choose_views(20, 3, 1, "a", args).inputs
    assert arc[2] - arc[1] == arc[1] - arc[0]
    assert samples.choose_views(5, 4, 0, "", args) is None


def test_any_first_part_covers_all_scenes_and_half_has_few_inputs(samples, args):
    planned = samples.plan(args)
    assert {one.case.scene for one in planned[:2]} == {"hall", "nook"}
    hall = [one.case.num_views for one in planned if one.case.scene == "hall"]
    assert sum(count <= 3 for count in hall) == len(hall) / 2
    assert {count <= 3 for count in hall[:2]} == {True, False}
    assert set(hall[:6]) == {2, 3, 4, 6, 9}
    nook = [one.case.num_views for one in planned if one.case.scene == "nook"]
    assert set(nook) == {2, 3}
    names = [(one.case.scene, one.name) for one in planned]
    assert len(set(names)) == len(names)
    assert {one.generator_side for one in planned} == {352, 512}


def test_one_input_is_refused(samples, args):
    with pytest.raises(InputError, match="At least two inputs are needed"):
        samples.plan(replace(args, views="1,3"))


@pytest.mark.parametrize("field", ["views", "generator_sides"])
@pytest.mark.parametrize("text", ["", "few", "3,", "3,0"])
def test_what_is_no_list_of_numbers_is_refused(samples, args, field, text):
    with pytest.raises(InputError, match="Whole numbers with commas"):
        samples.plan(replace(args, **{field: text}))


WORKER = """
import json, os, sys, time
for line in sys.stdin:
    job = json.loads(line)
    if "nook" in job["fold"]:
        os._exit(3)
    if job["seed"] == 2:
        time.sleep(600)
    os.makedirs(job["out"])
    fold = json.load(open(os.path.join(job["fold"], "fold.json")))
    for view in fold["test"][1:]:
        os.link(os.environ["BLANK"], os.path.join(job["out"], f"{view:05d}.npz"))
    print(json.dumps({"num_views": len(fold["test"]) - 1, "seconds": 0.1}), flush=True)
"""
"""Stands for the process that trains: it dies in one scene and never ends with one seed."""


def test_photos_are_added_and_failures_and_late_trials_given_up(
    samples, args, tmp_path, monkeypatch, capsys
):
    facts = ViewFacts(share=0.5, num_inputs=3, num_members=1, angle=0.1, distance=0.5, scale=1.0)
    one, three = torch.zeros(1, 1, 12, 16), torch.zeros(1, 3, 12, 16)
    view = FusionView(
        splat=three, frame=three, spread=one, opacity=one, trusted=one, layered=one,
        facts=facts.row(),
    )  # fmt: skip
    write_sample(tmp_path / "blank.npz", make_sample(view))
    monkeypatch.setenv("BLANK", str(tmp_path / "blank.npz"))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "fusion_trial.py").write_text(WORKER)
    worker = importlib.import_module("fusion_worker")
    monkeypatch.setattr(worker, "HERE", tmp_path / "here")
    monkeypatch.setattr(sys, "argv", ["fusion_samples.py"])
    args = replace(args, views="3", choices=3, parallel=2, budget_s=4)
    assert samples.main(args) == 0
    index = json.loads((args.out / "index.json").read_text())
    assert index["scenes"] == ["hall"]
    found = {(one["scene"], one["trial"]): one for one in index["trials"]}
    # The trial that never ends was given up, and is neither a success nor a failure.
    assert set(found) == {(s, f"3_{c}") for s in NUM_PHOTOS for c in range(3)} - {("hall", "3_2")}
    assert all(bool(one["answer"]["failure"]) == (s == "nook") for (s, _), one in found.items())
    for (scene, trial), one in found.items():
        written = sorted(path.name for path in (args.out / scene).glob(f"{trial}_*.npz"))
        wanted = [] if scene == "nook" else [f"{trial}_{v:05d}.npz" for v in one["test"][1:]]
        assert written == wanted
        for place, name in zip(one["test"][1:], written, strict=False):
            sample = read_sample(args.out / scene / name)
            photo = unpack_planes(sample.planes[None], sample.facts.row())[1]
            torch.testing.assert_close(photo, torch.full_like(photo, place / 40), atol=3e-3, rtol=0)
    assert "failed" in capsys.readouterr().err

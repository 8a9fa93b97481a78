"""The gate: which photos are left out, what is dropped, and that the run goes on undisturbed."""

import random
from pathlib import Path

import pytest
import torch
from pipelines import advance, open_pipeline, start_run, write_room

from fvgen_nerfstudio import gate
from fvgen_nerfstudio.gate import FoldScore, Judge, Verdict, left_out
from fvgen_nerfstudio.method import fvgen_splat_cpu
from fvgen_recon.densify.bank import Bank
from fvgen_recon.io.file import read_json


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    write_room(folder)
    return folder


@pytest.mark.parametrize(
    ("num_views", "num_folds", "expected"),
    [
        (2, 2, ()),
        (3, 1, (1,)),
        (3, 2, (0, 1)),
        (3, 9, (0, 1, 2)),
        (6, 2, (2, 4)),
        (9, 3, (2, 4, 6)),
    ],
)
def test_inner_views_are_left_out_first(num_views, num_folds, expected):
    assert left_out(num_views, num_folds) == expected


def test_a_round_is_kept_where_left_out_photos_do_not_suffer():
    better, worse = (FoldScore(view="a", real=20.0, mixed=m) for m in (21.0, 18.0))
    assert Verdict(folds=(better,)).keeps
    assert not Verdict(folds=(worse,)).keeps
    assert Verdict(folds=(better, worse)).gain == pytest.approx(-0.5)
    assert Verdict(folds=()).keeps


def test_the_left_out_photo_is_unknown_to_both_splats(room, tmp_path, monkeypatch):
    seen = []
    train = gate.train_briefly

    def spy(pipeline, optimizers, num_steps):
        data = pipeline.datamanager
        source = data.dataparser.source
        before = pipeline.model.means.detach().clone()
        train(pipeline, optimizers, num_steps)
        seen.append(
            (
                [source.capture.names[i] for i in source.split.inputs],
                len(data._entries),
                float((pipeline.model.means - before).abs().max()),
            )
        )

    monkeypatch.setattr(gate, "train_briefly", spy)
    pipeline = open_pipeline(
        room, generator="render", gate_folds=1, gate_steps=4, gate_long_side=48
    )
    names = pipeline.datamanager.dataparser.source.capture.names
    judge = Judge(
        config=pipeline.config,
        optimizers=fvgen_splat_cpu().config.optimizers,
        num_steps=10,
        names=names,
        device="cpu",
    )
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.random()
    torch.manual_seed(5)
    random.seed(5)
    verdict = judge.judge(0, tmp_path / "gate")
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    (fold,) = verdict.folds
    assert fold.view == names[1]
    (real_names, real_frames, moved), (mixed_names, mixed_frames, _) = seen
    assert real_names == mixed_names == [names[0], names[2]]
    assert real_frames == 0 < mixed_frames
    assert moved > 0
    assert 0 < fold.real < 60
    assert len(Bank(tmp_path / "gate" / "without_001")) == mixed_frames


@pytest.mark.parametrize("mixed", [10.0, 30.0])
def test_a_dropped_round_is_neither_generated_nor_judged_again(
    room,
    tmp_path: Path,
    monkeypatch,
    mixed,
):
    calls = []

    def judge(self, index, folder):
        calls.append(index)
        return Verdict(folds=(FoldScore(view="1.png", real=20.0, mixed=mixed),))

    monkeypatch.setattr(Judge, "judge", judge)
    pipeline = open_pipeline(room, generator="render", gate_folds=1)
    advance(pipeline, start_run(pipeline, tmp_path / "one"), range(1))
    is_kept = mixed > 20
    note = read_json(tmp_path / "one" / "bank" / "gate_00.json")
    assert note["keeps"] == is_kept
    assert note["gain"] == mixed - 20
    assert (len(pipeline.datamanager._entries) > 0) == is_kept
    resumed = open_pipeline(room, generator="render", gate_folds=1)
    advance(resumed, start_run(resumed, tmp_path / "two", tmp_path / "one"), range(5, 6))
    assert calls == [0]
    assert (len(resumed.datamanager._entries) > 0) == is_kept

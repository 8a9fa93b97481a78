"""Samples: what comes back from a file, and what is refused."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from fvgen_recon.errors import InputError
from fvgen_recon.fusion.example import choose_held_out, read_examples
from fvgen_recon.fusion.sample import (
    make_sample,
    read_sample,
    unpack_planes,
    with_photo,
    write_sample,
)
from fvgen_recon.fusion.view import FusionView, ViewFacts

FACTS = ViewFacts(share=0.5, num_inputs=2, num_members=3, angle=0.25, distance=1.5, scale=0.75)


@pytest.fixture
def view() -> FusionView:
    rng = torch.Generator().manual_seed(0)

    def draw(channels: int) -> torch.Tensor:
        return torch.rand(1, channels, 9, 14, generator=rng)

    return FusionView(
        splat=draw(3),
        spread=0.25 * draw(1),
        opacity=draw(1),
        frame=draw(3),
        trusted=draw(1).round(),
        layered=draw(1).round(),
        facts=FACTS.row(),
    )


def test_a_view_and_its_photo_come_back_from_a_file(view: FusionView, tmp_path: Path):
    photo = torch.rand(3, 9, 14, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "room" / "3_0_00001.npz"
    write_sample(path, make_sample(view))
    blank = read_sample(path)
    assert blank.facts == FACTS
    assert float(unpack_planes(blank.planes[None], FACTS.row())[1].max()) == 0
    write_sample(path, with_photo(blank, photo))
    (example,) = read_examples(tmp_path)
    assert (example.scene, example.name) == ("room", "3_0_00001")
    again, truth = unpack_planes(example.sample.planes[None], example.sample.facts.row())
    torch.testing.assert_close(truth[0], photo, atol=0.5 / 255 + 1e-6, rtol=0)
    for field in fields(FusionView):
        ours, theirs = getattr(again, field.name), getattr(view, field.name)
        torch.testing.assert_close(ours, theirs, atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_photo_of_another_size_is_refused(view: FusionView):
    with pytest.raises(InputError, match=r"size \(9, 14\) was expected: \(8, 14\) came"):
        with_photo(make_sample(view), torch.zeros(3, 8, 14))


def test_files_that_hold_no_sample_are_refused(tmp_path: Path):
    path = tmp_path / "room" / "one.npz"
    with pytest.raises(InputError, match="There are no samples"):
        read_examples(tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="is no sample to train a fusion on"):
        read_examples(tmp_path)
    np.savez(path, planes=np.zeros((5, 4, 4), dtype=np.uint8), facts=np.zeros(6))
    with pytest.raises(InputError, match="holds no 12 planes"):
        read_examples(tmp_path)
    np.savez(path, planes=np.zeros((12, 4, 4), dtype=np.uint8), facts=np.zeros(2))
    with pytest.raises(InputError, match="holds no 6 facts"):
        read_examples(tmp_path)


def test_the_scenes_to_measure_on_are_the_same_whatever_the_order():
    names = [f"scene{i}" for i in range(9)]
    chosen = choose_held_out(names * 3, 3)
    assert chosen == choose_held_out(names[::-1], 3)
    assert len(set(chosen)) == 3
    assert set(choose_held_out(names, 2)) < set(chosen)
    with pytest.raises(InputError, match="none is left to train on"):
        choose_held_out(names, 9)
    with pytest.raises(InputError, match="At least one scene"):
        choose_held_out(names, 0)

import copy
import logging
import threading
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from unit.pointcloud.stage import make_stage

from fvgen_recon.distill.stereo import gradient
from fvgen_recon.distill.stereo.bank import (
    RealScene,
    StereoBank,
    cut_group,
    draw_views,
    mirror_group,
)
from fvgen_recon.distill.stereo.batch import jitter_photos, knows_enough, random_span
from fvgen_recon.distill.stereo.gradient import GradientFinder
from fvgen_recon.distill.stereo.loss import pool_truth, stereo_losses
from fvgen_recon.distill.stereo.prefetch import draw_ahead
from fvgen_recon.distill.stereo.training import StereoSettings, StereoTrainer
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.pointcloud.consistency import compare_depth
from fvgen_recon.pointcloud.mvs.config import MvsConfig
from fvgen_recon.pointcloud.mvs.network import MvsNetwork

SMALL = MvsConfig(
    widths=(8, 16, 32),
    matched=(8, 8),
    groups=(2, 2),
    volume=(4, 4),
    num_attention=1,
    head_dim=16,
    num_planes=16,
    num_offsets=8,
)
SETTINGS = StereoSettings(
    seconds=1e6, max_steps=3, views_a_batch=2, view_shares=(1.0,), sizes=((32, 48),), log_every=1
)


@pytest.fixture(scope="module")
def real():
    scene, depth = make_stage((-12, -4, 4, 12))
    angle = torch.tensor([-12.0, -4, 4, 12])
    return RealScene(
        name="stage",
        photos=(scene.images * 255).round().byte(),
        cameras=scene.cameras,
        truth=1 / depth,
        angle=(angle[:, None] - angle).abs(),
    )


def test_windows_keep_cameras_and_truth_together(real):
    group = cut_group(real, [0, 1, 2], (32, 48), torch.Generator().manual_seed(3))
    found = compare_depth(group.truth, group.cameras)
    agree = (found.seen & (found.error < 1.0)).any(dim=1)
    assert agree.float().mean() > 0.75


def test_views_are_drawn_from_one_range_of_gaps(real, rng):
    for _ in range(20):
        views = draw_views(real.angle, 3, rng)
        if views is None:
            continue
        gaps = real.angle[views][:, views] + 1e3 * torch.eye(3)
        assert ((gaps.amin(dim=1) >= 3) & (gaps.amin(dim=1) < 30)).all()
    assert draw_views(torch.full((3, 3), 1e3), 2, rng) is None


def test_span_holds_the_known_depths(rng):
    truth = torch.rand(2, 20, 20, generator=rng) + 0.5
    truth[:, :10] = 0
    span = random_span(truth, rng)
    assert span is not None
    assert (span[:, 0] > 0).all()
    assert (span[:, 0] < 0.52).all()
    assert (span[:, 1] > 1.48).all()
    assert knows_enough(truth)
    assert random_span(torch.zeros(1, 20, 20), rng) is None
    assert not knows_enough(torch.cat([truth, torch.zeros(1, 20, 20)]))


def test_pooled_truth_keeps_single_points_and_drops_edges():
    truth = torch.zeros(1, 4, 4)
    truth[0, 0, 1] = 2.0
    truth[0, :2, 2:] = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    truth[0, 2:, :2] = 1.5
    pooled = pool_truth(truth, 2, torch.tensor([0.5]))
    assert pooled[0].tolist() == [[2.0, 0.0], [1.5, 0.0]]


def test_losses_fall_as_the_result_nears_the_truth(real):
    bank = StereoBank([real], torch.device("cpu"), 0)
    batch = bank.draw(1, 3, (32, 48), real_share=1.0)
    with torch.no_grad():
        result = MvsNetwork(SMALL)(batch.images, batch.cameras, batch.sources, batch.span)
    off = stereo_losses(result, batch.truth).figures
    known = torch.where(batch.truth > 0, batch.truth, result.inverse_depth)
    better = replace(result, inverse_depth=known, confidence_logit=torch.full_like(known, 9.0))
    exact = stereo_losses(better, batch.truth).figures
    assert exact["full_error"] == 0
    assert exact["confidence"] < 1e-3
    assert exact["right_2"] == 1
    assert off["full_error"] > 0.05
    assert off["total"] > exact["total"]


def test_training_goes_on_where_it_stopped(real, tmp_path):
    torch.manual_seed(0)
    bank = StereoBank([real], torch.device("cpu"), 0)
    networks = [MvsNetwork(SMALL) for _ in range(4)]
    trainer = StereoTrainer(networks[0], networks[1], bank, SETTINGS)
    lines = list(trainer.run())
    assert [line.step for line in lines] == [1, 2, 3]
    trainer.save(tmp_path / "state.safetensors")
    other = StereoTrainer(networks[2], networks[3], bank, replace(SETTINGS, max_steps=4))
    other.resume(tmp_path / "state.safetensors")
    assert other.step == 3
    for first, second in ((networks[0], networks[2]), (networks[1], networks[3])):
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)
    assert [line.step for line in other.run()] == [4]
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="no state"):
        other.resume(tmp_path / "broken.safetensors")


def test_batches_are_drawn_ahead_in_order_and_errors_arrive(real):
    drawn = []

    def draw():
        if len(drawn) == 3:
            raise WeightsError("no more")
        drawn.append(StereoBank([real], torch.device("cpu"), len(drawn)).draw(1, 2, (32, 48), 1.0))
        return drawn[-1]

    batches = draw_ahead(draw, torch.device("cpu"))
    got = [next(batches) for _ in range(3)]
    assert [id(b) for b in got] == [id(b) for b in drawn]
    with pytest.raises(WeightsError, match="no more"):
        next(batches)


def test_drawing_ahead_ends_with_its_user(real):
    before = threading.active_count()
    bank = StereoBank([real], torch.device("cpu"), 0)
    with closing(draw_ahead(lambda: bank.draw(1, 2, (32, 48), 1.0), bank.device)) as batches:
        next(batches)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_learns_a_scene(real):
    torch.manual_seed(0)
    bank = StereoBank([real], torch.device("cpu"), 1)
    average = MvsNetwork(SMALL)
    settings = replace(SETTINGS, max_steps=60, log_every=10, real_share=1.0, learning_rate=3e-3)
    lines = list(StereoTrainer(MvsNetwork(SMALL), average, bank, settings).run())
    assert lines[-1].figures["total"] < 0.8 * lines[0].figures["total"]


def test_photos_are_jittered_each_by_its_own_and_noise_by_group(rng):
    flat = torch.full((40, 3, 24, 24), 0.5)
    found = jitter_photos(flat, 2, rng)
    assert found.shape == flat.shape
    assert (found >= 0).all()
    assert (found <= 1).all()
    mean = found.mean(dim=(1, 2, 3))
    assert mean.std() > 0.02
    noise = (found - found.mean(dim=(2, 3), keepdim=True)).std(dim=(1, 2, 3)).unflatten(0, (20, 2))
    assert noise[:, 0].amax() > 2 * noise[:, 0].amin()
    assert torch.allclose(noise[:, 0], noise[:, 1], rtol=0.2)


def test_some_photos_are_softened(rng):
    checks = (torch.arange(24)[:, None] + torch.arange(24)).remainder(2).float() * 0.4 + 0.3
    found = jitter_photos(checks.expand(90, 3, 24, 24), 3, rng)
    step = (found[..., 1:] - found[..., :-1]).abs().mean(dim=(1, 2, 3)).unflatten(0, (30, 3))
    softened = (step < 0.15).sum(dim=1)
    assert softened.amax() == 1
    assert 3 <= int(softened.sum()) <= 16


def test_batches_are_real_and_rendered_as_wanted(real):
    bank = StereoBank([real], torch.device("cpu"), 0)
    rendered = bank.draw(3, 2, (32, 48), real_share=0.0)
    assert rendered.images.shape == (6, 3, 32, 48)
    assert (rendered.truth > 0).all()  # exact depth everywhere
    assert rendered.sources.flatten().tolist() == [1, 0, 3, 2, 5, 4]
    assert (rendered.span[:, 0] < rendered.span[:, 1]).all()
    copied = rendered.copy()
    for one, other in zip(rendered.tensors(), copied.tensors(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()


class Replay:
    """Stands in for a CUDA graph: does again what was recorded, into the same memory."""

    def __init__(self, call, output):
        self.call, self.output = call, output

    def replay(self):
        self.output.copy_(self.call())


def record(call, pool, *, strict):
    assert strict
    output = call()
    return Replay(call, output), output


def refuse(call, pool, *, strict):
    raise RuntimeError("called a synchronizing operation")


def make_finder(monkeypatch, network, how):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(gradient, "record_call", how)
    return GradientFinder(network, is_recorded=True)


def found_by(finder, batch):
    figures = finder.find(batch)
    return [figures, *(w.grad.clone() for w in finder.weights)]


def test_replays_read_each_batch_and_the_weights_of_now(real, monkeypatch):
    torch.manual_seed(0)
    network = MvsNetwork(SMALL)
    plain = GradientFinder(copy.deepcopy(network), is_recorded=False)
    recorded = make_finder(monkeypatch, network, record)
    bank = StereoBank([real], torch.device("cpu"), 0)
    for size in ((32, 48), (32, 32), (32, 48), (32, 32)):
        batch = bank.draw(1, 2, size, 1.0)
        expected, found = found_by(plain, batch), found_by(recorded, batch)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for one, other, g in zip(plain.weights, recorded.weights, expected[1:], strict=True):
                other.copy_(one.sub_(0.01 * g.sign()))
    assert len(recorded.made) == 2


def test_what_is_not_recorded_is_found_plainly_and_said(real, monkeypatch, caplog):
    network = MvsNetwork(SMALL)
    batch = StereoBank([real], torch.device("cpu"), 0).draw(1, 2, (32, 48), 1.0)
    expected = found_by(GradientFinder(network, is_recorded=False), batch)
    finder = make_finder(monkeypatch, network, refuse)
    with caplog.at_level(logging.WARNING):
        found = found_by(finder, batch)
    assert "NOT RECORDED" in caplog.text
    assert "synchronizing" in caplog.text
    assert not finder.is_recorded
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one)


def test_nothing_is_drawn_while_a_recording_is_made():
    drawn, quiet = [], threading.Lock()

    def draw():
        drawn.append(quiet.locked())
        raise WeightsError("enough")

    quiet.acquire()
    batches = draw_ahead(draw, torch.device("cpu"), quiet=quiet)
    errors = []

    def use():
        try:
            next(batches)
        except WeightsError as error:
            errors.append(str(error))

    starter = threading.Thread(target=use)
    starter.start()
    starter.join(0.3)
    assert not drawn
    quiet.release()
    starter.join(5)
    assert drawn == [True]  # held by the one that draws
    assert errors == ["enough"]


def test_the_rate_of_a_second_part_starts_at_its_peak(real):
    bank = StereoBank([real], torch.device("cpu"), 0)
    settings = replace(SETTINGS, seconds=300.0, start_seconds=100.0, learning_rate=1e-3)
    trainer = StereoTrainer(MvsNetwork(SMALL), MvsNetwork(SMALL), bank, settings)
    trainer.step = 1000
    rates = []
    for trainer.seconds in (100.0, 200.0, 300.0):
        rates.append(trainer._rate())
    assert rates == pytest.approx([1e-3, 5.1e-4, 2e-5])


COMPLETED = replace(SMALL, num_completion=1, completion_width=32, is_semantic=True)


def test_the_completion_learns_alone_first_and_then_everything_that_is_not_of_imagenet(real):
    torch.manual_seed(0)
    network = MvsNetwork(COMPLETED)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    bank = StereoBank([real], torch.device("cpu"), 0)
    settings = replace(SETTINGS, completion_seconds=1e6)
    trainer = StereoTrainer(network, MvsNetwork(COMPLETED), bank, settings)
    lines = list(trainer.run())

    def changed():
        state = network.state_dict()
        return {k for k, v in before.items() if not torch.equal(v, state[k])}

    assert changed()
    assert all(k.startswith("completion.") for k in changed())
    assert lines[-1].figures["coarse_entropy"] > 0
    assert lines[-1].figures["full_error"] == 0
    trainer.settings = replace(settings, completion_seconds=0.0, max_steps=5)
    list(trainer.run())
    assert {"coarse.leave.weight", "completion.leave.weight"} <= changed()
    assert not any(k.startswith("completion.semantic.") for k in changed())
    assert trainer.first_step == 3  # the rate rose again from nothing


def test_a_training_of_the_completion_needs_one(real):
    bank = StereoBank([real], torch.device("cpu"), 0)
    settings = replace(SETTINGS, completion_seconds=1.0)
    with pytest.raises(InputError, match="num-completion"):
        StereoTrainer(MvsNetwork(SMALL), MvsNetwork(SMALL), bank, settings)


def test_a_training_that_goes_on_after_the_completion_alone_lets_the_rate_rise_anew(real, tmp_path):
    bank = StereoBank([real], torch.device("cpu"), 0)
    settings = replace(SETTINGS, completion_seconds=1e6)
    first = StereoTrainer(MvsNetwork(COMPLETED), MvsNetwork(COMPLETED), bank, settings)
    list(first.run())
    first.save(tmp_path / "state.safetensors")
    later = replace(settings, completion_seconds=first.seconds, max_steps=4)
    second = StereoTrainer(MvsNetwork(COMPLETED), MvsNetwork(COMPLETED), bank, later)
    second.resume(tmp_path / "state.safetensors")
    list(second.run())
    assert second.first_step == 3
    assert second.alone is None
    # All have learned now: whoever goes on from there goes on at full rate.
    second.save(tmp_path / "state.safetensors")
    third = StereoTrainer(MvsNetwork(COMPLETED), MvsNetwork(COMPLETED), bank, later)
    third.resume(tmp_path / "state.safetensors")
    third._finder()
    assert third.first_step == 0


def test_worlds_have_a_share_of_their_own_and_give_no_textures(real):
    world = replace(real, photos=torch.zeros_like(real.photos))
    plain = StereoBank([real], torch.device("cpu"), 0)
    bank = StereoBank([real], torch.device("cpu"), 0, worlds=[world] * 50, world_share=0.5)
    assert torch.equal(bank.atlas.texels, plain.atlas.texels)
    groups = [bank._real(2, (32, 48)) for _ in range(60)]
    dark = [float(g.images.mean()) == 0 for g in groups if g is not None]
    assert 0.2 < sum(dark) / len(dark) < 0.8


def test_a_mirrored_group_agrees_with_itself(real):
    group = cut_group(real, [0, 1, 2], (32, 48), torch.Generator().manual_seed(3))
    mirrored = mirror_group(group)
    assert torch.equal(mirrored.images.flip(-1), group.images)
    here, there = (compare_depth(g.truth, g.cameras) for g in (group, mirrored))
    assert torch.allclose(there.error.flip(-1)[here.seen], here.error[here.seen], atol=1e-3)
    back = mirror_group(mirrored)
    assert torch.allclose(back.cameras.c2w, group.cameras.c2w)
    assert torch.allclose(back.cameras.K, group.cameras.K)

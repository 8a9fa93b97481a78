import json
from dataclasses import replace

import pytest
import torch
from factories import make_scene
from unit.pointcloud.stage import make_stage

from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.geometry.rigid import look_at
from fvgen_recon.pointcloud.depth_range import (
    find_depth_span,
    find_matched_span,
    plane_depths,
    widen_near,
)
from fvgen_recon.pointcloud.mvs import estimator
from fvgen_recon.pointcloud.mvs.checkpoint import (
    SHIPPED,
    average_mvs,
    grow_mvs,
    load_mvs,
    read_mvs_card,
    save_mvs,
)
from fvgen_recon.pointcloud.mvs.completion import NUM_CLUES, Completion, project_sources
from fvgen_recon.pointcloud.mvs.config import MvsConfig
from fvgen_recon.pointcloud.mvs.estimator import LearnedStereo
from fvgen_recon.pointcloud.mvs.feature import patches
from fvgen_recon.pointcloud.mvs.network import MvsNetwork, peak_index
from fvgen_recon.pointcloud.mvs.upsampling import GuidedUpsampling
from fvgen_recon.pointcloud.mvs.volume import (
    MatchMaps,
    aligned_conv3d,
    correlate_sources,
    correlate_units,
)
from fvgen_recon.pointcloud.neighbour import other_views
from fvgen_recon.pointcloud.sweep import relate_views
from fvgen_recon.types import Cameras

SMALL = MvsConfig(
    widths=(8, 16, 32), matched=(8, 8), groups=(2, 2), volume=(4, 4), num_attention=1, head_dim=16
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mvs") / "weights"
    save_mvs(folder, MvsNetwork(SMALL), {"steps": 0})
    return folder


@pytest.fixture(scope="module")
def staged(weights):
    scene, depth = make_stage()
    return scene, depth, LearnedStereo(weights=weights, fill=False).estimate_depth(scene)


def test_patches_correlate_like_zncc(rng):
    grey = torch.rand(1, 12, 14, generator=rng)
    vectors = patches(grey)[0]
    first, second = grey[0, 2:7, 3:8].flatten(), grey[0, 5:10, 6:11].flatten()
    expected = torch.corrcoef(torch.stack([first, second]))[0, 1]
    found = (vectors[:, 4, 5] * vectors[:, 7, 8]).sum()
    assert torch.allclose(found, expected, atol=5e-3)


def test_correlation_peaks_at_the_true_depth():
    # Features that are a function of the world point match exactly at the true depth only.
    scene, depth = make_stage((-8, 8))
    cameras = scene.cameras.resize(32, 40)
    truth = 1 / depth[:, :, ::2][:, torch.linspace(0, 59, 32).round().long()]
    points, _ = _world(1 / truth, cameras)
    waves = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)) * 4
    features = torch.sin(points @ waves).permute(0, 3, 1, 2)
    span = torch.stack([0.8 * truth.amin((1, 2)), 1.2 * truth.amax((1, 2))], dim=1)
    planes = plane_depths(span, 64)
    found = correlate_sources(
        MatchMaps(features=features, patches=torch.zeros(2, 25, 64, 80)),
        torch.arange(2),
        relate_views(cameras, other_views(2, truth)),
        planes,
        2,
    )
    score = found.groups.mean(dim=2)[:, 0] * found.inside[:, 0]
    best = planes[..., 0, 0].gather(1, score.argmax(dim=1).flatten(1)).reshape(truth.shape)
    assert ((best / truth - 1).abs() < 0.03).float().mean() > 0.7


def _world(depth, cameras):
    from fvgen_recon.geometry.projection import unproject_depth

    return unproject_depth(depth, cameras)


def test_untrained_geometry_is_right(staged):
    _, truth, maps = staged
    error = maps.depth / truth - 1
    assert maps.depth.shape == maps.confidence.shape == truth.shape
    assert error.abs().median() < 0.012
    assert error.median().abs() < 0.004
    assert (maps.confidence >= 0).all()
    assert (maps.confidence <= 1).all()


def test_chunks_change_nothing_and_neither_does_a_second_run(weights, staged):
    scene, _, maps = staged
    estimator = LearnedStereo(weights=weights, fill=False, chunk=1)
    again, twice = estimator.estimate_depth(scene), estimator.estimate_depth(scene)
    assert torch.equal(again.depth, twice.depth)
    assert torch.allclose(again.depth, maps.depth, rtol=1e-4)
    assert torch.allclose(again.confidence, maps.confidence, atol=1e-4)


def test_follows_a_similarity_of_the_world(weights, staged):
    scene, _, maps = staged
    turn = look_at(
        torch.tensor([5.0, -3.0, 2.0]), torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 0.0, 1.0])
    )
    c2w = scene.cameras.c2w.clone()
    c2w[:, :3, 3] *= 7.5
    moved = replace(scene, cameras=replace(scene.cameras, c2w=turn @ c2w))
    other = LearnedStereo(weights=weights, fill=False).estimate_depth(moved)
    ratio = other.depth / maps.depth / 7.5
    assert ((ratio - 1).abs() < 0.01).float().mean() > 0.95


def test_order_of_the_views_does_not_matter(weights, staged):
    scene, _, maps = staged
    order = [2, 0, 1]
    mixed = replace(
        scene,
        images=scene.images[order],
        cameras=scene.cameras[order],
        names=tuple(scene.names[i] for i in order),
    )
    other = LearnedStereo(weights=weights, fill=False).estimate_depth(mixed)
    assert ((other.depth / maps.depth[order] - 1).abs() < 0.01).float().mean() > 0.98


@pytest.mark.parametrize(("num_views", "size"), [(2, (48, 80)), (5, (51, 37))])
def test_any_number_of_views_and_any_size(weights, num_views, size):
    scene, _ = make_stage(tuple(range(-8, -8 + 4 * num_views, 4)))
    images = torch.nn.functional.interpolate(scene.images, size, mode="area")
    scene = replace(scene, images=images, cameras=scene.cameras.resize(*size))
    maps = LearnedStereo(weights=weights).estimate_depth(scene)
    assert maps.depth.shape == (num_views, *size)
    assert bool(torch.isfinite(maps.depth).all())
    assert (maps.depth > 0).all()
    cloud = LearnedStereo(weights=weights).estimate(scene)
    assert len(cloud) == num_views * size[0] * size[1]


def test_peak_index_reads_the_best_mode_only():
    logits = torch.full((1, 32, 1, 1), -20.0)
    logits[0, 4:7] = torch.tensor([2.0, 3.0, 2.0])[:, None, None]
    logits[0, 25] = 2.5
    assert peak_index(logits, 3)[0, 0, 0] == pytest.approx(5.0, abs=1e-4)


def test_upsampling_starts_near_repetition_and_keeps_constants():
    net = GuidedUpsampling(4)
    features = torch.randn(1, 4, 5, 6)
    flat = net(torch.full((1, 5, 6), 3.0), features)
    assert flat.shape == (1, 10, 12)
    assert torch.allclose(flat, torch.full_like(flat, 3.0))
    step = torch.zeros(1, 5, 6)
    step[..., 3:] = 1.0
    up = net(step, features)[0, 5]
    assert (up[:6] < 0.3).all()
    assert (up[6:] > 0.7).all()


def test_unit_correlation_and_its_gradients(rng):
    reference = torch.randn(2, 3, 4, 1, 2, 5, generator=rng, dtype=torch.float64)
    warped = torch.randn(2, 3, 4, 6, 2, 5, generator=rng, dtype=torch.float64)
    inputs = reference.requires_grad_(True), warped.requires_grad_(True)
    unit = torch.nn.functional.normalize(warped, dim=2)
    assert torch.allclose(correlate_units(*inputs), (reference * unit).sum(dim=2))
    assert torch.autograd.gradcheck(correlate_units, inputs)


def test_aligned_channels_change_nothing(rng):
    conv = torch.nn.Conv3d(5, 11, 2, stride=2)
    x = torch.randn(2, 5, 4, 6, 8, generator=rng)
    assert conv.bias is not None
    found = aligned_conv3d(x, conv.weight, conv.bias, stride=2, padding=0)
    assert found.shape == (2, 11, 2, 3, 4)
    assert torch.allclose(found, conv(x), atol=1e-5)


def test_weights_come_back(weights):
    network = load_mvs(weights)
    folder = weights.parent / "again"
    first = save_mvs(folder, network, {})
    assert first.sha256 == json.loads((weights / "config.json").read_text())["sha256"]
    assert first.config == SMALL


def test_shipped_weights_load_and_their_confidence_tells_right_from_wrong():
    scene, truth = make_stage()
    trained = LearnedStereo(fill=False).estimate_depth(scene)
    right = (trained.depth / truth - 1).abs() < 0.02
    assert read_mvs_card(SHIPPED).training["steps"] > 0
    assert right.float().mean() > 0.72
    assert trained.confidence[right].mean() > trained.confidence[~right].mean() + 0.1


def test_missing_and_damaged_weights_are_refused(weights, tmp_path):
    with pytest.raises(WeightsError, match="No stereo network"):
        LearnedStereo(weights=tmp_path).estimate_depth(make_stage()[0])
    (tmp_path / "config.json").write_text((weights / "config.json").read_text())
    with pytest.raises(WeightsError, match="are missing"):
        load_mvs(tmp_path)
    data = bytearray((weights / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="damaged"):
        load_mvs(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="not the config"):
        load_mvs(tmp_path)


def test_one_view_is_refused(weights):
    with pytest.raises(InputError, match="at least two views"):
        LearnedStereo(weights=weights).estimate(make_scene(1))


@pytest.mark.parametrize("num_completion", [0, 1])
def test_gradients_reach_every_weight(num_completion):
    torch.manual_seed(0)
    scene, depth = make_stage()
    images = torch.nn.functional.pad(scene.images, (0, 0, 0, 4), mode="replicate")
    has_completion = num_completion > 0
    more = replace(
        SMALL,
        num_completion=num_completion,
        completion_width=32,
        is_semantic=has_completion,
    )
    network = MvsNetwork(more)
    for part in (network.coarse, network.fine):
        torch.nn.init.normal_(part.leave.weight, std=0.1)
    if network.completion is not None:
        inner = network.completion
        for layer in (inner.leave, inner.eighth, inner.sixteenth):
            torch.nn.init.normal_(layer.weight, std=0.1)
    for part in (network.raise_coarse, network.raise_fine):
        torch.nn.init.normal_(part.net[2].weight, std=0.1)
    span = find_depth_span(scene.images, scene.cameras)
    cameras = replace(scene.cameras, height=64)
    result = network(images, cameras, other_views(3, images), span)
    truth = torch.nn.functional.pad(1 / depth, (0, 0, 0, 4))
    stages = (result.coarse.index, result.fine.index, result.start, result.confidence_logit)
    loss = (result.inverse_depth - truth).abs().mean() + sum(s.abs().mean() for s in stages)
    loss.backward()
    still = [n for n, p in network.trained_weights().items() if p.grad is None or not p.grad.any()]
    assert not still


def test_a_completion_is_added_without_changing_what_is_found(weights, staged, tmp_path):
    scene, _, maps = staged
    grown = grow_mvs(load_mvs(weights), replace(SMALL, num_completion=2, completion_width=32))
    save_mvs(tmp_path, grown, {"steps": 0})
    found = LearnedStereo(weights=tmp_path, fill=False).estimate_depth(scene)
    ratio = found.depth / maps.depth
    assert ((ratio - 1).abs() < 1e-3).float().mean() > 0.97
    with pytest.raises(WeightsError, match="same sizes"):
        grow_mvs(load_mvs(weights), replace(SMALL, num_planes=32, num_completion=2))
    with pytest.raises(WeightsError, match="same sizes"):
        grow_mvs(grown, replace(grown.config, num_completion=4))


def test_points_of_the_sources_arrive_where_they_are_seen():
    scene, depth = make_stage((-8, 8))
    cameras = scene.cameras
    trust = torch.ones_like(depth)
    sources = other_views(2, depth)
    found = project_sources(1 / depth, trust, cameras, sources)
    hit = found.trust > 0
    assert 0.5 < hit.float().mean() < 0.99
    error = found.inverse_depth[hit] * depth[hit] - 1
    assert (error.abs() < 0.03).float().mean() > 0.85
    assert (found.inverse_depth[~hit] == 0).all()
    # Of two points in one pixel the surer counts: a wrong one that is doubted changes nothing.
    doubled = torch.cat([sources, torch.full_like(sources, 2)], dim=1)
    three = torch.cat([1 / depth, 3 / depth[1:]])
    both = Cameras(
        c2w=cameras.c2w[[0, 1, 1]],
        K=cameras.K[[0, 1, 1]],
        height=cameras.height,
        width=cameras.width,
    )
    rows = torch.cat([doubled, doubled[:1]])
    doubtful = project_sources(three, torch.cat([trust, 0.3 * trust[1:]]), both, rows)
    assert torch.equal(doubtful.inverse_depth[0][hit[0]], found.inverse_depth[0][hit[0]])


def test_what_matching_left_open_is_learned_from_the_rest_of_the_view():
    # A plain wall: matching knows its left half, the completion learns that the right continues it.
    torch.manual_seed(0)
    config = replace(SMALL, num_completion=1, completion_width=32, num_planes=16)
    completion = Completion(config)
    optimizer = torch.optim.Adam(completion.parameters(), lr=3e-3)
    sources = torch.arange(16).flip(0)[:, None]
    photos = torch.zeros(16, 3, 32, 32), torch.zeros(16, 16, 8, 8)

    def draw():
        plane = torch.randint(2, 14, (16, 1, 1))
        clues = torch.zeros(16, NUM_CLUES, 8, 8)
        clues[:, 0, :, :4] = 2 * plane / 15 - 1
        clues[:, 7, :, :4] = 1
        return clues, plane.expand(16, 8, 8)

    for _ in range(200):
        clues, plane = draw()
        logits, _ = completion(
            torch.zeros(16, 3, 32, 32), torch.zeros(16, 16, 8, 8), clues, sources
        )
        loss = torch.nn.functional.cross_entropy(logits, plane)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clues, plane = draw()
    logits, _ = completion(*photos, clues, sources)
    assert ((logits.argmax(dim=1) - plane).abs() <= 1)[..., 4:].float().mean() > 0.9


def test_what_the_completion_sees_of_imagenet_stays_as_it_is(weights, staged):
    scene = staged[0]
    grown = grow_mvs(load_mvs(weights), replace(SMALL, num_completion=1, completion_width=32))
    more = grow_mvs(grown, replace(grown.config, is_semantic=True)).train()
    assert not any("semantic" in name for name in more.trained_weights())
    completion = more.completion
    assert completion is not None
    assert completion.semantic is not None
    assert not completion.semantic.training  # statistics of the photos would replace its own
    assert set(more.trained_weights(completion_alone=True)) < set(more.trained_weights())
    eighth, sixteenth = completion.semantic.levels(scene.images[:, :, :48, :64])
    assert eighth.shape == (3, 40, 6, 8)
    assert sixteenth.shape == (3, 112, 3, 4)
    with pytest.raises(WeightsError, match="same sizes"):
        grow_mvs(more, grown.config)


def test_the_mean_of_weights_lies_between_them():
    torch.manual_seed(1)
    networks = [MvsNetwork(SMALL) for _ in range(2)]
    mean = average_mvs(networks)
    name = "coarse.enter.weight"
    first, second = (n.get_parameter(name) for n in networks)
    assert torch.allclose(mean.get_parameter(name), (first + second) / 2)
    with pytest.raises(WeightsError, match="one config"):
        average_mvs([networks[0], MvsNetwork(replace(SMALL, num_planes=32))])


def test_the_network_searches_the_widened_range(weights, monkeypatch):
    scene, _ = make_stage()
    span = torch.tensor([0.05, 0.5]).expand(3, 2)
    seen = []

    def search(network, images, cameras, span, **options):
        seen.append(span)
        return torch.ones(images[:, 0].shape), torch.ones(images[:, 0].shape)

    found = span, torch.zeros(3)
    monkeypatch.setattr(estimator, "find_matched_span", lambda *scene: found)
    monkeypatch.setattr(estimator, "apply_network", search)
    LearnedStereo(weights=weights).estimate_depth(scene)
    assert torch.allclose(seen[0], torch.tensor([0.05, 0.75]).expand(3, 2))


def test_photos_are_looked_at_in_several_sizes_and_the_surest_depth_is_kept(weights, monkeypatch):
    scene, _ = make_stage()
    height, width = scene.cameras.height, scene.cameras.width
    largest = round(1.6 * max(height, width))
    seen = {}

    def search(network, images, cameras, span, **options):
        long_side = max(images.shape[-2:])
        assert (cameras.height, cameras.width) == images.shape[-2:]
        confidence = torch.full_like(images[:, 0], 0.5)
        # The smaller size is sure of the upper half, the larger of the lower one.
        upper = images.shape[-2] // 2
        (confidence[:, :upper] if long_side < largest else confidence[:, upper:]).fill_(0.9)
        depth = 1.0 if long_side < largest else 2.0
        seen[long_side] = images
        return torch.full_like(images[:, 0], 1 / depth), confidence

    monkeypatch.setattr(estimator, "apply_network", search)
    sides = (max(height, width), 10_000, 20_000)
    maps = LearnedStereo(weights=weights, long_sides=sides).estimate_depth(scene)
    assert sorted(seen) == [max(height, width), largest]
    assert torch.equal(seen[max(height, width)], scene.images)
    enlarged = seen[largest]
    assert float(enlarged.min()) >= 0
    assert float(enlarged.max()) <= 1
    back = torch.nn.functional.interpolate(enlarged, (height, width), mode="area")
    off = scene.images.roll(1, dims=-1)  # A photo that was shifted by a pixel.
    wrong = (off - scene.images).abs().mean()
    assert (back - scene.images).abs().mean() < 0.3 * wrong
    assert torch.allclose(maps.depth[:, : height // 2 - 1], torch.tensor(1.0))
    assert torch.allclose(maps.depth[:, height // 2 + 1 :], torch.tensor(2.0))
    assert torch.allclose(maps.confidence, torch.tensor(0.9))


def test_features_of_imagenet_need_a_completion():
    with pytest.raises(InputError, match="num_completion"):
        replace(SMALL, is_semantic=True)


def test_the_near_end_moves_where_little_is_matched():
    span = torch.tensor([[0.1, 1.0], [0.1, 1.0], [0.1, 1.0]])
    wide = widen_near(span, torch.tensor([0.6, 0.075, 0.0]))
    assert torch.allclose(wide[:, 0], span[:, 0])
    assert torch.allclose(wide[:, 1], torch.tensor([1.0, 1.25, 1.5]))
    scene, _ = make_stage()
    found, matched = find_matched_span(scene.images, scene.cameras)
    assert torch.equal(found, find_depth_span(scene.images, scene.cameras))
    assert ((matched > 0.1) & (matched <= 1)).all()

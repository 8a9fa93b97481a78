"""Training clips from real photos, procedural worlds and splats, mixed by share."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fvgen_recon.distill.clip import build_clips, load_clips
from fvgen_recon.distill.pack import PackedScene, read_pack, write_pack
from fvgen_recon.distill.pair import (
    PairLimits,
    PairPool,
    evaluation_plans,
    find_pair,
    find_pairs,
    gap_bin,
    pool_pairs,
)
from fvgen_recon.distill.source import (
    BankConfig,
    ProceduralSource,
    SourceShares,
    Worker,
    pack_capture,
    pack_world,
    photo_crops,
    split_pool,
    write_mixed_bank,
)
from fvgen_recon.distill.splat import SplatConfig, fit_splat, splat_plans
from fvgen_recon.errors import InputError
from fvgen_recon.evaluation.metric import psnr
from fvgen_recon.pointcloud.plane_sweep import PlaneSweep
from fvgen_recon.render.world import TraceConfig, procedural_capture

FAST = TraceConfig(supersample=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def walk() -> PackedScene:
    """A dense capture: ten photos along a walk of 36 degrees and two beside it."""
    capture = procedural_capture(
        11, num_frames=10, num_extras=2, height=40, width=64, gap_deg=36.0, kind="table",
        texture_size=64, config=FAST,
    )  # fmt: skip
    return pack_capture(capture, "walk")


@pytest.fixture(scope="module")
def pool(walk: PackedScene) -> PairPool:
    return pool_pairs((walk,), PairLimits())


def test_pairs_are_those_of_the_search_over_all(walk: PackedScene) -> None:
    limits = PairLimits()
    slow = [
        pair
        for a in range(len(walk))
        for b in range(a + 1, len(walk))
        if (pair := find_pair(walk, a, b, limits)) is not None
    ]
    assert find_pairs(walk, limits) == slow
    assert len(slow) > 10


def test_plans_spread_over_gaps_and_view_counts(pool: PairPool, rng: torch.Generator) -> None:
    plans = pool.draw(300, 6, rng)
    filled = sum(bool(b) for b in pool.bins[0])
    counts = torch.bincount(
        torch.tensor([gap_bin(p.paths[0].pair.gap_deg) for p in plans]), minlength=3
    )
    assert filled >= 2
    assert int(counts[counts > 0].min()) > 0.7 * 300 / filled
    views = torch.bincount(torch.tensor([len(p.inputs) for p in plans]), minlength=6)
    assert views[:2].sum() == 0
    assert bool((views[2:5] > 20).all())


def test_a_walk_has_its_own_photo_at_every_frame(rng: torch.Generator) -> None:
    source = ProceduralSource(
        photos=torch.rand(2, 3, 64, 64),
        num_frames=3,
        long_side=32,
        texture_size=64,
        config=FAST,
        chunk=4,
    )
    scenes, plans = source.batch(0, rng)
    assert len(scenes) == 2
    assert len(plans) == 4
    for plan in plans:
        path, scene = plan.paths[0], scenes[plan.scene]
        assert len(set(path.frames)) == 3
        assert set(path.frames[1:-1]).isdisjoint(plan.inputs)
        assert (path.frames[0], path.frames[-1]) == plan.inputs[:2]
        assert max(path.frames) < len(scene)
        assert float(scene.depth[list(path.frames)].min()) > 0
    whole, half = plans[0].paths[0], plans[1].paths[0]
    assert half.pair.gap_deg == pytest.approx(whole.pair.gap_deg / 2)


def test_augmentation_changes_exposure_of_inputs_and_targets_alike(walk: PackedScene) -> None:
    """Anchors stay what their targets are, whatever the exposures were drawn to be."""
    plan = evaluation_plans(walk, 0, num_views=3, num_frames=6, clips=1, every=True)[0]
    seen = set()
    for seed in range(4):
        clips = build_clips(
            walk, plan, PlaneSweep(), crop=(32, 48), num_crops=1, device=CPU,
            rng=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        ends = (clips.frames[:, [0, -1]].int() - clips.target[:, [0, -1]].int()).abs()
        assert int(ends.max()) <= 1
        seen.add(round(float(clips.target.float().mean()), 3))
    assert len(seen) > 2


def test_a_splat_learns_the_capture_and_gives_targets(
    walk: PackedScene, pool: PairPool, rng: torch.Generator
) -> None:
    config = SplatConfig(iterations=1, long_side=64, max_gaussians=1500, hold_out=5)
    rough = fit_splat(walk, config, CPU).psnr
    splat = fit_splat(walk, replace(config, iterations=80), CPU)
    assert splat.psnr > rough + 1.0
    pairs = pool.draw_pairs(0, 2, rng)
    grown, plans = splat_plans(walk, splat, pairs, num_frames=5, min_alpha=0.0, rng=rng, device=CPU)
    assert len(plans) == 2
    assert len(grown) == len(walk) + 6
    path = plans[0].paths[0]
    assert path.frames[1:-1] == (len(walk), len(walk) + 1, len(walk) + 2)
    # The way of the renders passes near real photos, which they should resemble.
    middle = grown.scene([path.frames[2]], 40, 64)
    real = walk.scene(range(len(walk)), 40, 64)
    nearest = (real.cameras.position - middle.cameras.position).norm(dim=1).argmin()
    other = (real.cameras.position - middle.cameras.position).norm(dim=1).argmax()
    close = float(psnr(middle.images, real.images[nearest][None]))
    assert close > float(psnr(middle.images, real.images[other][None]))
    none, empty = splat_plans(walk, splat, pairs, num_frames=5, min_alpha=1.01, rng=rng, device=CPU)
    assert empty == []
    assert len(none) == len(walk)


def test_a_bank_mixes_all_sources(walk: PackedScene, tmp_path: Path) -> None:
    config = BankConfig(
        shares=SourceShares(real=0.34, procedural=0.33, splat=0.33),
        num_plans=3,
        num_frames=3,
        crop=(32, 48),
        num_crops=1,
        splat=SplatConfig(
            iterations=5, long_side=64, max_gaussians=400, min_photos=6, min_psnr=0.0, min_alpha=0.0
        ),
        texture_size=64,
        long_side=48,
        trace=FAST,
        chunk=2,
    )
    worker = Worker(index=0, count=1, device=CPU, seed=3)
    made = write_mixed_bank((walk,), tmp_path, PlaneSweep(), config, worker)
    assert min(made.values()) >= 1
    files = sorted(tmp_path.glob("*.safetensors"))
    assert {f.stem.split("-")[-1] for f in files} == {"real", "procedural", "splat"}
    for file in files:
        clips = load_clips(file)
        assert clips.target.shape[1:] == (3, 3, 32, 48)
        assert float(clips.mask.float().mean()) > 0.05
    again = {f: f.stat().st_mtime_ns for f in files}
    write_mixed_bank((walk,), tmp_path, PlaneSweep(), config, worker)
    assert {f: f.stat().st_mtime_ns for f in files} == again


def test_captures_that_fit_badly_leave_their_room_to_others(
    walk: PackedScene, tmp_path: Path
) -> None:
    config = BankConfig(
        shares=SourceShares(real=0.5, procedural=0.0, splat=0.5),
        num_plans=2,
        num_frames=3,
        crop=(32, 48),
        num_crops=1,
        splat=SplatConfig(
            iterations=1, long_side=64, max_gaussians=200, min_photos=6, min_psnr=90.0
        ),
        texture_size=64,
        chunk=2,
    )
    worker = Worker(index=0, count=1, device=CPU, seed=3)
    made = write_mixed_bank((walk,), tmp_path, PlaneSweep(), config, worker)
    assert made == {"real": 2, "procedural": 0, "splat": 0}


def test_packed_worlds_are_clips_with_a_photo_at_every_frame(
    walk: PackedScene, tmp_path: Path, rng: torch.Generator
) -> None:
    world = pack_world(
        4, torch.rand(2, 3, 64, 64), long_side=48, num_frames=9, texture_size=64, config=FAST
    )
    assert len(world) == 13
    assert write_pack((walk, world), tmp_path / "mixed.pack") > 0
    scenes = read_pack(tmp_path / "mixed.pack")
    assert [s.name for s in scenes] == ["walk", world.name]
    torch.testing.assert_close(scenes[1].depth, world.depth)
    assert scenes[1].jpegs == world.jpegs
    real, worlds = split_pool(scenes, PairLimits(), 5)
    assert [s.name for s in real.scenes] == ["walk"]
    for plan in worlds.draw(20, 5, rng):
        for path in plan.paths:
            assert len(set(path.frames)) == 5


def test_crops_come_from_the_photos(walk: PackedScene, rng: torch.Generator) -> None:
    crops = photo_crops((walk,), 5, 64, rng)
    assert crops.shape == (5, 3, 64, 64)
    assert float(crops.std(dim=(1, 2, 3)).min()) > 0.01


def test_shares_must_want_something() -> None:
    with pytest.raises(InputError, match="not all 0"):
        SourceShares(real=0.0, procedural=0.0, splat=0.0)

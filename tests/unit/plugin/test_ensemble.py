"""Members of a splat: trained apart, shown as the mean of their renders, kept in checkpoints."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from factories import make_cameras, make_cloud
from nerfstudio.data.scene_box import SceneBox
from pipelines import advance, open_pipeline, start_run, write_room

from fvgen_nerfstudio.camera import MEMBER, to_nerfstudio
from fvgen_nerfstudio.ensemble import SPREAD, mean_render, member_indices
from fvgen_nerfstudio.model import FvgenModel, FvgenModelConfig

NUM_POINTS = 60
MEMBERS = torch.arange(NUM_POINTS) % 2


def _model(num_members: int = 2, **options) -> FvgenModel:
    cloud = make_cloud(NUM_POINTS)
    config = FvgenModelConfig(
        sh_degree=0,
        num_downscales=0,
        strategy="none",
        background_color="black",
        num_members=num_members,
        **options,
    )
    model = config.setup(
        scene_box=SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])),
        num_train_data=3,
        seed_points=(cloud.xyz, cloud.rgb * 255),
        metadata={
            "points3D_confidence": torch.ones(NUM_POINTS),
            "points3D_spacing": torch.full((NUM_POINTS,), 0.1),
            "points3D_member": MEMBERS,
        },
    )
    assert isinstance(model, FvgenModel)
    model.optimizers = {}
    return model


def _camera(member: int | None = None):
    camera = to_nerfstudio(make_cameras(3, 24, 32)[1])
    camera.metadata = {} if member is None else {MEMBER: member}
    return camera


@pytest.mark.parametrize("member", [0, 1])
def test_a_step_trains_one_member(member):
    model = _model().train()
    batch = {"image": torch.rand(24, 32, 3)}
    losses = model.get_loss_dict(model(_camera(member)), batch)
    torch.stack(list(losses.values())).sum().backward()
    grad = model.gauss_params["features_dc"].grad.abs().sum(-1)
    assert grad[member != MEMBERS].max() == 0
    assert grad[member == MEMBERS].max() > 0


def test_evaluation_shows_the_mean_of_the_members():
    model, apart = _model().train(), []
    for member in range(2):
        model.train()
        apart.append(model(_camera(member)))
    model.eval()
    both = model(_camera())
    for name in ("rgb", "accumulation"):
        mean = torch.stack([outputs[name] for outputs in apart]).mean(0)
        torch.testing.assert_close(both[name], mean, atol=1e-6, rtol=1e-5)
    whole = _model(num_members=1).eval()(_camera())
    assert (whole["rgb"] - both["rgb"]).abs().max() > 0.01
    frames, alpha, _ = model.render_black(make_cameras(3, 24, 32)[[1]])
    assert frames.shape == (1, 3, 24, 32)
    torch.testing.assert_close(alpha[0].permute(1, 2, 0), both["accumulation"])


def test_added_points_are_shown_by_every_member():
    model = _model(max_gaussians=2 * NUM_POINTS).train()
    groups = model.get_gaussian_param_groups()
    model.optimizers = {name: torch.optim.Adam(group) for name, group in groups.items()}
    assert model.add_points(make_cloud(20, seed=5)) == 40
    members = model.strategy_state["member"]
    shown = [member_indices(members, 2)[member] for member in range(2)]
    assert [len(index) for index in shown] == [NUM_POINTS // 2 + 20] * 2
    added = [model.means[index[-20:]] for index in shown]
    torch.testing.assert_close(added[0], added[1])
    assert model.add_points(make_cloud(20, seed=6)) == 0  # There is room for one member alone.


def test_a_checkpoint_knows_the_members():
    model, other = _model(), _model()
    state = model.state_dict()
    other.strategy_state["member"] = torch.zeros(NUM_POINTS)
    other.load_state_dict(state)
    assert torch.equal(other.strategy_state["member"], MEMBERS.float())
    torch.testing.assert_close(other.eval()(_camera())["rgb"], model.eval()(_camera())["rgb"])
    old = {k: v for k, v in state.items() if k != "_extra_state" and not k.startswith("exposure")}
    other.load_state_dict(old)
    assert other.strategy_state["member"].max() == 0


def test_one_render_stays_itself_and_a_mean_keeps_what_is_no_image():
    first, second = ({"rgb": torch.full((2, 2, 3), x), "depth": None} for x in (0.2, 0.6))
    assert mean_render([first]) is first
    mean = mean_render([first, second])
    torch.testing.assert_close(mean["rgb"], torch.full((2, 2, 3), 0.4))
    assert mean["depth"] is None


def test_how_far_members_differ_is_told_where_it_is_asked_for():
    first, second = ({"rgb": torch.full((2, 2, 3), x), "depth": None} for x in (0.2, 0.6))
    second["rgb"][..., 2] = 0.2
    spread = mean_render([first, second], with_spread=True)[SPREAD]
    # Two channels have a standard deviation of 0.2, the third of 0.
    torch.testing.assert_close(spread, torch.full((2, 2, 1), 0.2 * (2 / 3) ** 0.5))
    assert float(mean_render([first], with_spread=True)[SPREAD].max()) == 0
    assert SPREAD not in mean_render([first, second])


def test_a_splat_tells_it_outside_of_training_where_frames_are_mixed_in():
    model = _model().train()
    apart = torch.stack([model(_camera(member))["rgb"] for member in range(2)])
    assert SPREAD not in model.eval()(_camera())
    model.frame_source = SimpleNamespace()  # pyright: ignore
    outputs = model(_camera())
    wanted = ((apart[0] - apart[1]) / 2).square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(outputs[SPREAD], wanted, atol=1e-6, rtol=1e-4)
    assert float(wanted.max()) > 0.05
    assert SPREAD not in model.train()(_camera(0))


def test_indices_part_the_gaussians():
    indices = member_indices(MEMBERS.float(), 3)
    assert torch.equal(torch.cat(indices).sort().values, torch.arange(NUM_POINTS))
    assert len(indices[2]) == 0


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    write_room(folder)
    return folder


SOURCES = ("plane-sweep", "plane-sweep")


def test_each_member_gets_points_depth_and_every_other_step(room, tmp_path):
    pipeline = open_pipeline(room, ensemble=SOURCES, strategy="none", generator="none")
    model, data = pipeline.model, pipeline.datamanager
    assert model.config.num_members == len(data.depth_targets) == 2
    member = model.strategy_state["member"]
    assert (member == 0).sum() == (member == 1).sum() > 0
    before = model.means.detach().clone()
    callbacks = start_run(pipeline, tmp_path)
    advance(pipeline, callbacks, range(1))
    moved = (model.means.detach() - before).abs().sum(-1) > 0
    assert moved[member == 0].any()
    assert not moved[member == 1].any()
    advance(pipeline, callbacks, range(1, 2))
    moved = (model.means.detach() - before).abs().sum(-1) > 0
    assert moved[member == 1].any()


def test_members_that_would_grow_are_refused(room, capsys):
    with pytest.raises(SystemExit) as stop:
        open_pipeline(room, ensemble=SOURCES, strategy="mcmc", generator="none")
    assert stop.value.code == 2
    assert "keep their Gaussians" in capsys.readouterr().err

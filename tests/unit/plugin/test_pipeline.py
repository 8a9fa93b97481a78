"""Rounds on a tiny real scene: what lands in the bank, in the splat and in the next round."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers

from fvgen_nerfstudio.datamanager import FvgenDatamanagerConfig
from fvgen_nerfstudio.dataparser import FvgenDataParserConfig
from fvgen_nerfstudio.method import fvgen_splat_cpu
from fvgen_nerfstudio.model import FvgenModelConfig
from fvgen_nerfstudio.pipeline import FvgenPipeline, FvgenPipelineConfig
from fvgen_nerfstudio.rounds import DensifySettings
from fvgen_nerfstudio.trainer import FvgenTrainerConfig
from fvgen_recon.densify.bank import Bank
from fvgen_recon.errors import InputError
from fvgen_recon.io.image import write_image
from fvgen_recon.io.scenes import write_transforms
from fvgen_recon.render.procedural import arc_cameras, random_scene, render_procedural

NUM_STEPS = 10


@dataclass
class RunStub:
    """What a pipeline asks of its trainer, without the training."""

    config: FvgenTrainerConfig
    base_dir: Path
    resumed: Path | None = None

    def resumed_run(self) -> Path | None:
        return self.resumed


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    cameras = arc_cameras([-12.0, 0.0, 12.0], radius=3.0, height=32, width=48)
    images = render_procedural(random_scene(3), cameras, supersample=1).images
    names = tuple(f"images/{i}.png" for i in range(3))
    for name, image in zip(names, images, strict=True):
        write_image(folder / name, image)
    write_transforms(folder, cameras, names)
    return folder


def _pipeline(room: Path, **settings) -> FvgenPipeline:
    torch.manual_seed(0)
    parser = FvgenDataParserConfig(data=room, estimator="random", num_points=300)
    config = FvgenPipelineConfig(
        datamanager=FvgenDatamanagerConfig(dataparser=parser),
        model=FvgenModelConfig(sh_degree=0, num_downscales=0, background_color="black"),
        densify=DensifySettings(long_side=48, num_frames=4, **settings),
    )
    pipeline = config.setup(device="cpu")
    assert isinstance(pipeline, FvgenPipeline)
    return pipeline


def _start(pipeline: FvgenPipeline, folder: Path, resumed: Path | None = None) -> list:
    config = fvgen_splat_cpu().config
    config.max_num_iterations = NUM_STEPS
    attributes = TrainingCallbackAttributes(
        optimizers=Optimizers(config.optimizers.copy(), pipeline.get_param_groups()),
        grad_scaler=None,
        pipeline=pipeline,
        trainer=RunStub(config, folder, resumed),  # pyright: ignore
    )
    return pipeline.get_training_callbacks(attributes)


def _advance(pipeline: FvgenPipeline, callbacks: list, steps: range) -> None:
    for step in steps:
        pipeline.train()
        for callback in callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        _, losses, _ = pipeline.get_train_loss_dict(step)
        for optimizer in pipeline.model.optimizers.values():
            optimizer.zero_grad()
        sum(losses.values()).backward()
        for optimizer in pipeline.model.optimizers.values():
            optimizer.step()


def test_later_rounds_are_conditioned_on_the_splat(room, tmp_path):
    pipeline = _pipeline(room, rounds=(0.0, 0.5))
    callbacks = _start(pipeline, tmp_path)
    _advance(pipeline, callbacks, range(4))
    bank = Bank(tmp_path / "bank")
    assert bank.num_rounds == 1
    first = {e.origin.guidance_hash for e in bank.entries}
    pipeline.model.opacities.data.fill_(8.0)
    pipeline.model.scales.data.fill_(-1.0)
    _advance(pipeline, callbacks, range(4, 6))
    bank = Bank(tmp_path / "bank")
    assert bank.num_rounds == 2
    second = {e.origin.guidance_hash for e in bank.entries if e.origin.round == 1}
    assert second
    assert not second & first
    assert {e.origin.round for e in pipeline.datamanager._entries} == {1}


def test_checkpoints_hold_the_splat_alone(room, tmp_path):
    pipeline = _pipeline(room)
    before = set(pipeline.state_dict())
    _advance(pipeline, _start(pipeline, tmp_path), range(2))
    assert set(pipeline.state_dict()) == before
    assert all(key.startswith("_model.") for key in before)


def test_a_resumed_run_takes_over_the_bank_and_generates_nothing_again(room, tmp_path):
    first = _pipeline(room)
    _advance(first, _start(first, tmp_path / "one"), range(1))
    second = _pipeline(room)
    stamp = (tmp_path / "one" / "bank" / "manifest.json").read_bytes()
    _advance(second, _start(second, tmp_path / "two", tmp_path / "one"), range(5, 6))
    assert (tmp_path / "two" / "bank" / "manifest.json").read_bytes() == stamp
    assert len(second.datamanager._entries) == len(Bank(tmp_path / "one" / "bank")) > 0


def test_a_finished_bank_is_trained_from_as_it_is(room, tmp_path):
    maker = _pipeline(room)
    _advance(maker, _start(maker, tmp_path / "one"), range(1))
    user = _pipeline(room, bank=tmp_path / "one" / "bank", generator="replay")
    _advance(user, _start(user, tmp_path / "two"), range(1))
    assert len(Bank(tmp_path / "two" / "bank")) == len(Bank(tmp_path / "one" / "bank"))
    absent = _pipeline(room, bank=tmp_path / "absent")
    with pytest.raises(InputError, match="no bank with frames"):
        _start(absent, tmp_path / "three")


def test_without_a_generator_there_is_no_bank(room, tmp_path):
    pipeline = _pipeline(room, generator="none")
    _advance(pipeline, _start(pipeline, tmp_path), range(2))
    assert pipeline.datamanager.bank is None
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"generator": "magic"}, "no generator `magic`"),
        ({"planner": "magic"}, "no trajectory planner `magic`"),
        ({"weights": Path("absent")}, "no weights at absent"),
        ({"rounds": (0.5, 0.1)}, "rising fractions"),
    ],
)
def test_settings_that_cannot_work_end_with_one_sentence(room, settings, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        _pipeline(room, **settings)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err

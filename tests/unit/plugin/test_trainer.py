"""Training options: schedules follow the length of the run."""

import copy

import pytest
from nerfstudio.configs.method_configs import all_methods


def _config(num_steps: int):
    config = copy.deepcopy(all_methods["fvgen-splat-cpu"])
    config.max_num_iterations = num_steps
    return config


def test_step_numbers_stretch_with_the_run_once():
    usual, long = _config(600), _config(1200)
    usual.save_config()
    long.save_config()
    long.save_config()
    before, after = usual.pipeline.model, long.pipeline.model
    for name in ("warmup_length", "resolution_schedule", "sh_degree_interval", "stop_split_at"):
        assert getattr(after, name) == 2 * getattr(before, name)
    assert after.refine_every == before.refine_every
    assert before.stop_split_at == all_methods["fvgen-splat-cpu"].pipeline.model.stop_split_at
    means = [config.optimizers["means"]["scheduler"].max_steps for config in (usual, long)]
    assert means == [600, 1200]


def test_very_short_runs_keep_intervals_that_can_be_divided_by():
    short = _config(1)
    short.save_config()
    model = short.pipeline.model
    assert model.resolution_schedule == model.sh_degree_interval == 1


@pytest.mark.parametrize("num_steps", [300, 5000])
def test_steps_may_be_taken_as_they_are(num_steps):
    config = _config(num_steps)
    config.schedule_steps = 0
    config.save_config()
    assert config.pipeline.model == all_methods["fvgen-splat-cpu"].pipeline.model

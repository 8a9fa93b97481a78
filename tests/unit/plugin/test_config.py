"""Entry points: their names, that they fail softly, and that the methods are whole."""

import sys
from importlib.metadata import entry_points

import pytest
import yaml
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.models.splatfacto import SplatfactoModel
from nerfstudio.plugins.types import MethodSpecification

import fvgen_nerfstudio.config as entry
from fvgen_nerfstudio.config import Unavailable

NAMES = ("fvgen-splat", "fvgen-splat-cpu")


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_registered_under_its_own_name(name):
    (point,) = entry_points(group="nerfstudio.method_configs", name=name)
    specification = point.load()
    assert isinstance(specification, MethodSpecification)
    assert specification.config.method_name == name
    assert all_methods[name] is specification.config
    assert specification.description


@pytest.mark.parametrize("name", NAMES)
def test_the_contracts_of_ns_tools_hold(name):
    pipeline = all_methods[name].pipeline
    assert issubclass(pipeline.model._target, SplatfactoModel)
    assert isinstance(pipeline.datamanager, FullImageDatamanagerConfig)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_s_config_can_be_written_and_read_back(name):
    config = all_methods[name]
    again = yaml.load(yaml.dump(config), Loader=yaml.Loader)
    assert again == config


def test_a_new_setting_can_be_added_without_losing_old_runs():
    """Plain settings missing from an old `config.yml` take their defaults."""
    settings = all_methods["fvgen-splat"].pipeline.densify
    text = yaml.dump(settings)
    old = "\n".join(line for line in text.splitlines() if not line.startswith("num_samples"))
    assert old != text.strip()
    assert yaml.load(old, Loader=yaml.Loader).num_samples == settings.num_samples


def test_a_broken_import_takes_away_one_method_and_says_why(monkeypatch):
    monkeypatch.delattr(entry, "fvgen_splat", raising=False)
    monkeypatch.setitem(sys.modules, "fvgen_nerfstudio.method", None)
    broken = entry.fvgen_splat
    assert isinstance(broken, Unavailable)
    assert "fvgen-splat" in str(broken)
    assert "ModuleNotFoundError" in str(broken)
    monkeypatch.delattr(entry, "fvgen_splat")


def test_unknown_names_are_unknown():
    with pytest.raises(AttributeError, match="magic"):
        _ = entry.magic


def test_training_ends_on_photos():
    for name in NAMES:
        config = all_methods[name]
        assert config.pipeline.datamanager.schedule().share_at(0.999) == 0
        assert config.pipeline.model.stop_split_at < config.max_num_iterations

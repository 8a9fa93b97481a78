import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet3DConditionModel
from safetensors.torch import load_file, save_file
from unit.diffusion.viewcrafter.small import NUM_FRAMES, make_condition, make_noisy, make_unet

from fvgen_recon.diffusion.viewcrafter.key import unet_rules
from fvgen_recon.diffusion.viewcrafter.parity import COMPARISONS
from scripts.check_parity import Options, main

FIXTURES = [
    ("unet", "viewcrafter_unet_small_A"),
    ("unet", "viewcrafter_unet_small_B"),
    ("resampler", "resampler_A"),
    ("resampler", "resampler_B"),
    ("ddim", "ddim_A"),
    ("vae", "vae_small"),
    ("clip", "clip_small"),
    ("clip", "clip_preprocess"),
]

INPUTS = {
    "unet": {"x", "timesteps", "fs", "context", "context_perframe"},
    "resampler": {"x"},
    "ddim": {
        "misc.rescale_cfg_in",
        "misc.rescale_text_in",
        "misc.timestep_embedding_in",
        "misc.v_t",
        "misc.v_x",
    },
    "vae": {"x", "z", "noise"},
    "clip": {"image", "tokens", "a.in", "b.in", "c.in"},
}
"""What is in a fixture and is no output: everything else must be compared."""


@pytest.mark.parity
@pytest.mark.parametrize(("kind", "name"), FIXTURES)
def test_equals_the_original(parity, kind, name):
    path = parity / f"{name}.safetensors"
    rows = COMPARISONS[kind](path)
    assert [row for row in rows if not row.is_accepted] == []
    held = {key for key in load_file(path) if not key.startswith(("w.", "in.", "train."))}
    assert {row.name for row in rows} == held - INPUTS[kind]


def test_equals_the_stock_network_without_the_two_additions():
    unet = make_unet(
        block_out_channels=(32, 64, 96, 96),
        attention_levels=(True, True, True, False),
        layers_per_block=2,
        image_cross_attention=False,
        fps_condition=False,
    )
    stock = UNet3DConditionModel(
        in_channels=8,
        block_out_channels=(32, 64, 96, 96),
        cross_attention_dim=24,
        attention_head_dim=16,
    ).eval()
    stock.load_state_dict(unet.state_dict(), strict=True)
    rng = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 8, 3, 8, 16, generator=rng)
    context = torch.randn(2, 77, 24, generator=rng)
    t = torch.tensor([999, 20])
    with torch.no_grad():
        expected = stock(sample, t, context).sample
        torch.testing.assert_close(unet(sample, t, context)[0], expected, atol=5e-5, rtol=0)


def _write_fixture(folder: Path, **changes) -> Path:
    """A fixture of the UNet, made by our own network, of other sizes than the shared ones."""
    unet = make_unet(image_context="per_frame")
    x_t, t = make_noisy()
    condition = make_condition(unet, num_image=16 * NUM_FRAMES)
    tensors = {
        "x": torch.cat([x_t, condition.concat], dim=1),
        "timesteps": t,
        "fs": torch.tensor([3]),
        "context": condition.context,
    }
    with torch.no_grad():
        tensors["y"] = unet(tensors["x"], t, condition.context, tensors["fs"])[0]
        tensors["y_default_fs"] = unet(tensors["x"], t, condition.context)[0]
    state = unet.state_dict()
    for rule in unet_rules(unet):
        whole = rule.join(state[name] for name in rule.targets)
        tensors[f"w.{rule.source}"] = whole.contiguous()
    parameters = {
        "in_channels": 8,
        "out_channels": 4,
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [1],
        "num_head_channels": 16,
        "context_dim": 24,
        "default_fs": 10,
        "fs_condition": True,
        "image_cross_attention": True,
    }
    path = folder / "unet.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    facts = {"unet_params": parameters | changes}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


def test_command_accepts_a_fixture_of_other_sizes(tmp_path, capsys):
    assert main(Options(kind="unet", fixture=_write_fixture(tmp_path))) == 0
    assert "2 outputs, 0 above tolerance" in capsys.readouterr().out


def test_command_fails_on_a_wrong_output(tmp_path, capsys):
    path = _write_fixture(tmp_path)
    tensors = load_file(path)
    tensors["y_default_fs"][0, 0, 0, 0, 0] += 1e-3
    save_file(tensors, path)
    assert main(Options(kind="unet", fixture=path)) == 1
    out = capsys.readouterr().out
    assert "1 above tolerance; closest to it: y_default_fs" in out
    assert out.count("FAIL") == 1


def _lose_weight(path):
    tensors = load_file(path)
    del tensors["w.out.2.bias"]
    save_file(tensors, path)


def _lose_input(path):
    tensors = load_file(path)
    del tensors["timesteps"]
    save_file(tensors, path)


def _squeeze_input(path):
    tensors = load_file(path)
    tensors["x"] = tensors["x"][:, :7].contiguous()
    save_file(tensors, path)


BREAKAGES = {
    "sizes that do not fit together": _squeeze_input,
    "lack 'out.2.bias'": _lose_weight,
    "lacks the tensor 'timesteps'": _lose_input,
    "cannot be read as safetensors": lambda path: path.write_bytes(b"nonsense"),
    "is not there": lambda path: path.unlink(),
    "json was expected": lambda path: path.with_suffix(".json").unlink(),
    "is not valid JSON": lambda path: path.with_suffix(".json").write_text("{"),
    "lacks the entry 'unet_params'": lambda path: path.with_suffix(".json").write_text("{}"),
}


@pytest.mark.parametrize("sentence", BREAKAGES)
def test_command_refuses_bad_fixtures_in_one_sentence(tmp_path, capsys, sentence):
    path = _write_fixture(tmp_path)
    BREAKAGES[sentence](path)
    assert main(Options(kind="unet", fixture=path)) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_command_refuses_networks_that_are_not_built(tmp_path, capsys):
    path = _write_fixture(tmp_path, use_causal_attention=True)
    assert main(Options(kind="unet", fixture=path)) == 2
    assert "use_causal_attention=True" in capsys.readouterr().err


KINDS = ("unet", "resampler", "ddim", "vae", "clip", "camera", "render")


def test_command_refuses_a_fixture_of_another_kind(tmp_path, capsys):
    path = _write_fixture(tmp_path)
    for kind in KINDS[1:]:
        assert main(Options(kind=kind, fixture=path)) == 2
        assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_command_refuses_files_that_are_missing_or_damaged(tmp_path, capsys, kind):
    path = tmp_path / "fixture.safetensors"
    for content in (None, b"nonsense"):
        if content:
            path.write_bytes(content)
        assert main(Options(kind=kind, fixture=path)) == 2
        error = capsys.readouterr().err
        assert str(path) in error
        assert error.count("\n") == 1


def _keep_one_clip(tensors, facts):
    for name in ("x", "timesteps", "fs", "context", "y"):
        tensors[name] = tensors[name][1:].contiguous()
    for name in [n for n in tensors if n.startswith(("y_", "act.", "context_"))]:
        del tensors[name]


def _swap_images(tensors, facts):
    for name in ("x", "z", "noise", "decoded", "moments"):
        tensors[name] = tensors[name].flip(0).contiguous()
    for name in ("mean", "logvar", "sample", "latent_scaled"):
        del tensors[name]


def _keep_decoding(tensors, facts):
    for name in ("x", "noise", "moments", "mean", "logvar", "sample", "latent_scaled"):
        del tensors[name]


def _keep_one_path(tensors, facts):
    for name in [n for n in tensors if n.startswith(("obj.", "specified.", "txt.", "interp16."))]:
        del tensors[name]
    facts["notes"] = {}


def _keep_one_radius(tensors, facts):
    for name in [n for n in tensors if n.startswith("r0.01.")]:
        del tensors[name]


def _keep_text(tensors, facts):
    tensors["tokens"] = tensors["tokens"][1:].contiguous()
    tensors["text_out"] = tensors["text_out"][1:].contiguous()
    del facts["vision"]


def _keep_small_images(tensors, facts):
    for name in ("a.in", "a.out", "c.in", "c.out"):
        del tensors[name]
    tensors["upsampled.in"], tensors["upsampled.out"] = tensors.pop("b.in"), tensors.pop("b.out")


def _keep_one_run(tensors, facts):
    facts["runs"] = {"run_z": facts["runs"]["run_d"] | {"note": "renamed"}}
    for name in [n for n in tensors if n.startswith(("run_", "train", "misc.", "sched."))]:
        if name.startswith("run_d."):
            tensors[name.replace("run_d", "run_z")] = tensors[name]
        del tensors[name]


OTHER_FIXTURES = {
    ("unet", "viewcrafter_unet_small_A"): (_keep_one_clip, 1),
    ("unet", "viewcrafter_unet_small_B"): (_keep_one_clip, 1),
    ("vae", "vae_small", "images"): (_swap_images, 2),
    ("vae", "vae_small", "decoding"): (_keep_decoding, 1),
    ("camera", "camera_traj"): (_keep_one_path, 5),
    ("render", "point_render"): (_keep_one_radius, 8),
    ("clip", "clip_small"): (_keep_text, 1),
    ("clip", "clip_preprocess"): (_keep_small_images, 1),
    ("ddim", "ddim_A"): (_keep_one_run, 9),
}


@pytest.mark.parity
@pytest.mark.parametrize("case", OTHER_FIXTURES)
def test_command_reads_fixtures_that_hold_less_or_are_ordered_otherwise(
    parity, tmp_path, capsys, case
):
    (kind, name), (change, num_outputs) = case[:2], OTHER_FIXTURES[case]
    tensors = load_file(parity / f"{name}.safetensors")
    facts = json.loads((parity / f"{name}.json").read_text())
    change(tensors, facts)
    path = tmp_path / "other.v2.safetensors"
    save_file(tensors, path)
    path.with_suffix(".json").write_text(json.dumps(facts))
    assert main(Options(kind=kind, fixture=path)) == 0
    assert f"{num_outputs} outputs, 0 above" in capsys.readouterr().out

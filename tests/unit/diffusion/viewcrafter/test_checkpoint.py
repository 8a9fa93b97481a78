import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from unit.diffusion.viewcrafter.small import original_tensors, small_architecture

from fvgen_recon.diffusion.viewcrafter.architecture import Architecture, build_parts
from fvgen_recon.diffusion.viewcrafter.checkpoint import (
    FILES,
    LEFTOVER,
    convert_checkpoint,
    export_checkpoint,
    read_original,
)
from fvgen_recon.diffusion.viewcrafter.key import load_original, text_rules, unet_rules
from fvgen_recon.diffusion.viewcrafter.layout import PREFIXES, compare_keys, expected_shapes
from fvgen_recon.diffusion.viewcrafter.tensor_file import (
    TensorEntry,
    open_tensors,
    write_tensors,
)
from fvgen_recon.diffusion.viewcrafter.unet import ImageContext
from fvgen_recon.errors import InputError, WeightsError
from fvgen_recon.io.file import file_sha256


@pytest.fixture
def tensors():
    return original_tensors(small_architecture())


def _save(path, tensors, container="state_dict"):
    prefix = "_forward_module." if container == "module" else ""
    torch.save({"epoch": 3, container: {prefix + k: v for k, v in tensors.items()}}, path)
    return path


def _convert(source, folder, image_context: ImageContext = "shared"):
    return convert_checkpoint(
        source, folder, image_context=image_context, architecture=small_architecture()
    )


@pytest.mark.parity
def test_expected_names_and_shapes_are_the_full_checkpoints(parity):
    facts = json.loads((parity / "viewcrafter_state_keys.json").read_text())
    architecture = Architecture()
    expected = expected_shapes(architecture, build_parts(architecture, "shared"))
    assert expected == {name: tuple(shape) for name, shape in facts.items()}


@pytest.mark.parametrize("container", ["state_dict", "module"])
def test_round_trip_is_bit_exact_and_keeps_the_container(tmp_path, tensors, container):
    source = _save(tmp_path / "model.ckpt", tensors, container)
    _convert(source, tmp_path / "folder")
    assert export_checkpoint(tmp_path / "folder", tmp_path / "back.ckpt") == len(tensors)
    content = torch.load(tmp_path / "back.ckpt", weights_only=True)
    assert list(content) == [container]
    back = read_original(tmp_path / "back.ckpt").tensors
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name


_MEASURE = """
import sys
from dataclasses import replace
from pathlib import Path

import torch
from unit.diffusion.viewcrafter.small import small_architecture
from fvgen_recon.diffusion.viewcrafter.architecture import UNetShape, build_parts
from fvgen_recon.diffusion.viewcrafter.checkpoint import convert_checkpoint, export_checkpoint
from fvgen_recon.diffusion.viewcrafter.layout import expected_shapes

source, folder, back = map(Path, sys.argv[1:])
wide = UNetShape(block_out_channels=(320, 640), layers_per_block=1, attention_levels=(True, True))
architecture = replace(small_architecture(), unet=wide)

def status(field):
    text = Path("/proc/self/status").read_text()
    return int(text.partition(field + ":")[2].split()[0]) * 1024

def peak(work):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work()
    return status("VmHWM") - before

if not source.exists():
    shapes = expected_shapes(architecture, build_parts(architecture, "shared"))
    tensors = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    torch.save({"module": {"_forward_module." + k: v for k, v in tensors.items()}}, source)
else:
    print(peak(lambda: convert_checkpoint(
        source, folder, image_context="shared", architecture=architecture
    )))
    print(peak(lambda: export_checkpoint(folder, back)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_memory_stays_under_thirteen_tenths_of_the_file(tmp_path):
    source = tmp_path / "model.ckpt"
    root = Path(__file__).parents[4]
    command = [sys.executable, "-c", _MEASURE, source, tmp_path / "folder", tmp_path / "back.ckpt"]
    path = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=path)
        assert done.returncode == 0, done.stderr
    size = source.stat().st_size
    assert size > 300e6
    to_folder, to_checkpoint = map(int, done.stdout.split())
    assert 0 < to_folder < 1.3 * size
    assert 0 < to_checkpoint < 1.3 * size
    assert (tmp_path / "back.ckpt").stat().st_size == pytest.approx(size, rel=0.01)


def test_half_precision_checkpoints_stay_half(tmp_path, tensors):
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    _convert(_save(tmp_path / "model.ckpt", halves), tmp_path / "folder")
    export_checkpoint(tmp_path / "folder", tmp_path / "back.ckpt")
    back = read_original(tmp_path / "back.ckpt").tensors
    assert all(torch.equal(back[name], half) for name, half in halves.items())


def test_exported_file_is_no_larger_than_its_tensors(tmp_path, tensors):
    source = _save(tmp_path / "model.ckpt", tensors)
    _convert(source, tmp_path / "folder")
    export_checkpoint(tmp_path / "folder", tmp_path / "back.ckpt")
    assert (tmp_path / "back.ckpt").stat().st_size < 1.01 * source.stat().st_size


def test_base_scale_is_the_checkpoints_own(tmp_path):
    tensors = original_tensors(small_architecture(), base_scale=0.7)
    done = _convert(_save(tmp_path / "model.ckpt", tensors), tmp_path / "folder", "per_frame")
    assert done.base_scale == pytest.approx(0.7)
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["base_scale"] == done.base_scale
    config = json.loads((tmp_path / "folder" / "unet" / "config.json").read_text())
    assert config["image_context"] == "per_frame"


def test_files_are_the_modules_own_state(tmp_path, tensors):
    _convert(_save(tmp_path / "model.ckpt", tensors), tmp_path / "folder")
    parts = build_parts(small_architecture(), "shared", device="cpu")
    load_original(parts.unet, unet_rules(parts.unet), tensors, PREFIXES["unet"])
    saved = load_file(tmp_path / "folder" / FILES["unet"])
    assert saved.keys() == parts.unet.state_dict().keys()
    assert all(torch.equal(saved[k], v) for k, v in parts.unet.state_dict().items())
    text = parts.text_encoder
    load_original(text, text_rules(text), tensors, PREFIXES["text_encoder"])
    loaded = type(text).from_pretrained(tmp_path / "folder" / "text_encoder")
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in text.state_dict().items())


def test_recorded_checksums_are_the_files(tmp_path, tensors):
    done = _convert(_save(tmp_path / "model.ckpt", tensors), tmp_path / "folder")
    assert set(done.sha256) == {*FILES.values(), LEFTOVER}
    for name, checksum in done.sha256.items():
        assert file_sha256(tmp_path / "folder" / name) == checksum


def test_a_damaged_file_is_refused(tmp_path, tensors):
    _convert(_save(tmp_path / "model.ckpt", tensors), tmp_path / "folder")
    path = tmp_path / "folder" / FILES["vae"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256 differs"):
        export_checkpoint(tmp_path / "folder", tmp_path / "back.ckpt")
    assert not (tmp_path / "back.ckpt").exists()
    path.unlink()
    with pytest.raises(WeightsError, match="is missing"):
        export_checkpoint(tmp_path / "folder", tmp_path / "back.ckpt")


def test_a_student_is_exported_with_its_teachers_leftovers(tmp_path, tensors):
    _convert(_save(tmp_path / "model.ckpt", tensors), tmp_path / "teacher")
    student = original_tensors(small_architecture(), seed=1)
    _convert(_save(tmp_path / "student.ckpt", student), tmp_path / "student")
    (tmp_path / "student" / "conversion.json").unlink()
    with pytest.raises(WeightsError, match=r"lacks conversion\.json"):
        export_checkpoint(tmp_path / "student", tmp_path / "back.ckpt")
    export_checkpoint(tmp_path / "student", tmp_path / "back.ckpt", leftover=tmp_path / "teacher")
    back = read_original(tmp_path / "back.ckpt").tensors
    name = "model.diffusion_model.out.2.weight"
    assert torch.equal(back[name], student[name])
    proj = "embedder.model.visual.proj"
    assert torch.equal(back[proj], tensors[proj])


def test_misfits_are_all_reported(tmp_path, tensors):
    del tensors["betas"], tensors["first_stage_model.quant_conv.bias"]
    tensors["ema.decay"] = torch.zeros(1)
    tensors["model.diffusion_model.out.2.bias"] = torch.zeros(5)
    source = _save(tmp_path / "model.ckpt", tensors)
    with pytest.raises(WeightsError) as caught:
        _convert(source, tmp_path / "folder")
    sentence = str(caught.value)
    assert "2 tensors missing (betas, first_stage_model.quant_conv.bias)" in sentence
    assert "1 tensors unexpected (ema.decay)" in sentence
    assert "model.diffusion_model.out.2.bias is (5,) and not (4,)" in sentence
    assert not (tmp_path / "folder").exists()


def test_another_architecture_is_refused(tmp_path, tensors):
    source = _save(tmp_path / "model.ckpt", tensors)
    with pytest.raises(WeightsError, match="does not fit the architecture"):
        convert_checkpoint(source, tmp_path / "folder", image_context="shared")


class _Trap:
    def __reduce__(self):
        return (print, ("code ran",))


def _no_prefix(path, tensors):
    torch.save({"module": tensors}, path)


BAD_FILES = {
    "is not there": lambda path, tensors: None,
    "cannot be read": lambda path, tensors: path.write_bytes(b"nonsense"),
    "pickled code": lambda path, tensors: torch.save({"state_dict": _Trap()}, path),
    "neither 'state_dict' nor 'module'": lambda path, tensors: torch.save(tensors, path),
    "does not start with '_forward_module.'": _no_prefix,
    "'scale_arr', which is no tensor": lambda path, tensors: torch.save(
        {"state_dict": tensors | {"scale_arr": 0.3}}, path
    ),
}


@pytest.mark.parametrize("sentence", BAD_FILES)
def test_files_that_are_no_checkpoint_are_refused(tmp_path, tensors, sentence, capsys):
    BAD_FILES[sentence](tmp_path / "model.ckpt", tensors)
    with pytest.raises(WeightsError, match=sentence):
        _convert(tmp_path / "model.ckpt", tmp_path / "folder")
    assert "code ran" not in capsys.readouterr().out


def test_a_folder_is_not_overwritten_and_other_versions_are_refused(tmp_path, tensors):
    source = _save(tmp_path / "model.ckpt", tensors)
    _convert(source, tmp_path / "folder")
    with pytest.raises(InputError, match="holds a converted model already"):
        _convert(source, tmp_path / "folder")
    record = tmp_path / "folder" / "conversion.json"
    record.write_text(record.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(WeightsError, match="format version 9 and this release reads 1"):
        export_checkpoint(tmp_path / "folder", tmp_path / "back.ckpt")


def test_key_report_is_empty_only_without_differences(tensors):
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert compare_keys(tensors, shapes).is_empty
    assert not compare_keys(tensors, shapes | {"more": (1,)}).is_empty


def test_tensor_files_are_safetensors(tmp_path):
    rng = torch.Generator().manual_seed(0)
    tensors = {
        "single": torch.randn(3, 5, generator=rng),
        "half": torch.randn(7, generator=rng).half(),
        "brain": torch.randn(2, 2, generator=rng).bfloat16(),
        "scalar": torch.randn((), generator=rng),
        "whole": torch.arange(4),
        "strided": torch.randn(4, 6, generator=rng).T,
    }
    entries = [
        TensorEntry(name=k, shape=tuple(v.shape), dtype=v.dtype, load=lambda v=v: v)
        for k, v in tensors.items()
    ]
    checksum = write_tensors(tmp_path / "a.safetensors", entries)
    assert checksum == file_sha256(tmp_path / "a.safetensors")
    theirs, ours = load_file(tmp_path / "a.safetensors"), open_tensors(tmp_path / "a.safetensors")
    assert theirs.keys() == ours.spans.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(ours.load(name), tensor)
        assert ours.load(name).untyped_storage().nbytes() == tensor.numel() * tensor.itemsize


def test_damaged_tensor_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    tensor = torch.zeros(8)
    entry = TensorEntry(name="a", shape=(8,), dtype=torch.float32, load=lambda: tensor)
    write_tensors(path, [entry])
    content = path.read_bytes()
    for damage, sentence in (
        (content[:-1], "cut short"),
        (content[:20], "not a readable"),
        (b"", "not a readable"),
    ):
        path.write_bytes(damage)
        with pytest.raises(WeightsError, match=sentence):
            open_tensors(path)

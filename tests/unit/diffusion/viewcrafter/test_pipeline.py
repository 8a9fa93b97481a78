import json
import shutil
from dataclasses import replace

import pytest
import torch
from unit.diffusion.viewcrafter.small import NUM_FRAMES, make_guidance, write_model

from fvgen_recon.densify.generators import GeneratorConfig, load_generator
from fvgen_recon.diffusion.backbone import Codec, NoiseSchedule, VideoBackbone
from fvgen_recon.diffusion.sampler import GuidanceScale, guided_output, sample_ddim
from fvgen_recon.diffusion.viewcrafter.generator import (
    load_student,
    load_teacher,
    load_video_model,
    weights_hash,
)
from fvgen_recon.diffusion.viewcrafter.pipeline import ViewCrafterPipeline
from fvgen_recon.diffusion.viewcrafter.student import FVGenPipeline
from fvgen_recon.distill.model import BACKBONES
from fvgen_recon.distill.rollout import RolloutSettings
from fvgen_recon.errors import InputError, WeightsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def teacher(folder):
    pipeline = ViewCrafterPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def student(teacher):
    pipeline = FVGenPipeline(
        **teacher.components, base_scale=teacher.config["base_scale"], num_frames=(NUM_FRAMES,)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def student_folder(student, tmp_path_factory):
    target = tmp_path_factory.mktemp("student")
    student.save_pretrained(target)
    return target


def _seed(seed=0):
    return torch.Generator().manual_seed(seed)


def test_teacher_is_ddim_with_guidance_on_the_codecs_condition(teacher):
    clip = make_guidance()
    frames = teacher(clip, generator=_seed(), num_inference_steps=3).frames
    rng = _seed()
    condition = teacher.codec.condition([clip], rng)
    x_T = torch.randn(condition.concat.shape, generator=rng)
    noise = [torch.randn(x_T.shape, generator=rng) for _ in range(3)]

    def denoise(x_t, t):
        sample = torch.cat([x_t, condition.concat], dim=1)
        v, _ = teacher.unet(sample, t, condition.context)
        null, _ = teacher.unet(sample, t, condition.null_context)
        return guided_output(v, null, GuidanceScale(scale=7.5, rescale=0.7))

    times = teacher.schedule.timesteps(3)
    z = sample_ddim(denoise, x_T, teacher.schedule, times=times, noise=lambda i, like: noise[i])
    torch.testing.assert_close(frames, teacher.codec.decode(z), atol=1e-4, rtol=1e-4)


def test_frames_are_finite_and_in_range(teacher, student):
    for output in (
        teacher(make_guidance(), generator=_seed(), num_inference_steps=2),
        student(make_guidance(), generator=_seed()),
    ):
        assert output.frames.shape == (1, NUM_FRAMES, 3, 32, 48)
        assert output.frames.amin() >= 0
        assert output.frames.amax() <= 1


def test_same_seed_same_frames_other_seed_other_frames(student):
    clip = make_guidance()
    first = student(clip, generator=_seed(1)).frames
    assert torch.equal(first, student(clip, generator=_seed(1)).frames)
    assert not torch.allclose(first, student(clip, generator=_seed(2)).frames)


@pytest.mark.parametrize("sampler", ["sde", "ode"])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_student_runs_in_few_steps_and_tells_of_each(student, num_steps, sampler):
    heard = []
    student(
        make_guidance(),
        generator=_seed(),
        num_inference_steps=num_steps,
        sampler=sampler,
        callback_on_step_end=lambda pipeline, step: heard.append((pipeline, step.index)),
    )
    assert heard == [(student, i) for i in range(num_steps)]


def test_one_clean_frame_or_both_ends_and_batches(student):
    both = make_guidance()
    one = replace(both, anchors=both.anchors[:1])
    output = student([both, one], generator=_seed())
    assert output.frames.shape == (2, NUM_FRAMES, 3, 32, 48)


def test_other_accepted_length_runs(teacher):
    clip = make_guidance(num_frames=NUM_FRAMES + 1)
    output = teacher(clip, generator=_seed(), num_inference_steps=1)
    assert output.frames.shape[1] == NUM_FRAMES + 1


@pytest.mark.parametrize("saver", ["vae_slicing", "guidance_in_turn", "feed_forward_chunking"])
def test_memory_savers_change_no_value(teacher, saver):
    clip = make_guidance()
    expected = teacher(clip, generator=_seed(), num_inference_steps=2).frames
    getattr(teacher, f"enable_{saver}")()
    frames = teacher(clip, generator=_seed(), num_inference_steps=2).frames
    getattr(teacher, f"disable_{saver}")()
    torch.testing.assert_close(frames, expected, atol=1e-4, rtol=1e-4)


def test_saved_student_gives_the_same_frames(student, student_folder):
    loaded = FVGenPipeline.from_pretrained(student_folder)
    clip = make_guidance()
    expected = student(clip, generator=_seed()).frames
    assert torch.equal(loaded(clip, generator=_seed()).frames, expected)
    assert loaded.config["base_scale"] == student.config["base_scale"]


def test_generators_are_the_pipelines(folder, student_folder, student):
    clip = make_guidance()
    generator = load_student(student_folder, num_frames=NUM_FRAMES)
    for name, place in (("student", student_folder), ("teacher", folder)):
        config = GeneratorConfig(name=name, weights=place)  # What a user gets who sets no length.
        assert load_generator(config).num_frames == NUM_FRAMES
    expected = student(clip, generator=_seed(3)).frames[0]
    assert torch.equal(generator.generate(clip, seed=3), expected)
    assert (generator.name, generator.num_steps, generator.size_multiple) == ("student", 4, 16)
    assert generator.weights_hash == weights_hash(student_folder)
    teacher = load_teacher(folder, num_frames=NUM_FRAMES, num_steps=2)
    assert teacher.generate(clip, seed=0).shape == clip.frames.shape
    # The same weights have the same hash, whichever program wrote the files.
    assert teacher.weights_hash == generator.weights_hash


def test_a_student_runs_as_it_was_trained_to(folder, tmp_path):
    model = load_video_model(folder)
    rollout = RolloutSettings(num_steps=2, kind="ode")
    BACKBONES["viewcrafter"].export(tmp_path / "student", folder, model.backbone, rollout)
    config = GeneratorConfig(name="student", weights=tmp_path / "student")
    generator, clip = load_generator(config), make_guidance()
    assert generator.num_steps == 2
    pipeline = FVGenPipeline.from_pretrained(tmp_path / "student")
    expected = pipeline(clip, generator=_seed(), num_inference_steps=2, sampler="ode").frames[0]
    assert torch.equal(generator.generate(clip, seed=0), expected)
    assert torch.equal(pipeline(clip, generator=_seed()).frames[0], expected)
    assert load_generator(replace(config, num_steps=4)).num_steps == 4


def test_a_student_from_before_steps_were_kept_runs_in_four(student, student_folder, tmp_path):
    target = tmp_path / "student"
    shutil.copytree(student_folder, target)
    _edit(target / "model_index.json", num_steps=None, sampler=None)
    assert load_student(target, num_frames=None).num_steps == 4
    loaded, clip = FVGenPipeline.from_pretrained(target), make_guidance()
    expected = student(clip, generator=_seed(), num_inference_steps=4, sampler="sde").frames
    assert torch.equal(loaded(clip, generator=_seed()).frames, expected)


def test_video_model_fits_the_seam(folder, rng):
    model = load_video_model(folder)
    assert isinstance(model.codec, Codec)
    assert isinstance(model.backbone, VideoBackbone)
    assert isinstance(model.schedule, NoiseSchedule)
    condition = model.codec.condition([make_guidance()], rng)
    x_t = torch.randn(condition.concat.shape, generator=rng)
    output, (mid,) = model.backbone(x_t, torch.tensor([500]), condition, return_mid=True)
    assert output.shape == x_t.shape
    assert mid.shape[:3] == (1, 64, NUM_FRAMES)


def test_bad_guidance_is_refused(teacher, student):
    with pytest.raises(InputError, match="Guidance of 4 frames was expected, 3 frames came"):
        student(make_guidance(num_frames=3), generator=_seed())
    with pytest.raises(InputError, match="4 or 5 frames"):
        teacher(make_guidance(num_frames=6), generator=_seed())
    with pytest.raises(InputError, match=r"40x48.*multiples of 16"):
        student(make_guidance(height=40), generator=_seed())
    with pytest.raises(InputError, match="one length and size"):
        student([make_guidance(), make_guidance(width=64)], generator=_seed())
    with pytest.raises(InputError, match="at least one clip"):
        student([], generator=_seed())


def test_bad_numbers_are_refused(teacher, student, student_folder):
    with pytest.raises(InputError, match="1, 2, 4, 8 steps, 3 came"):
        student(make_guidance(), generator=_seed(), num_inference_steps=3)
    with pytest.raises(InputError, match="between 1 and 1000"):
        teacher(make_guidance(), generator=_seed(), num_inference_steps=0)
    with pytest.raises(InputError, match="guidance rescale"):
        teacher(make_guidance(), generator=_seed(), guidance_rescale=2.0)
    with pytest.raises(InputError, match="num_frames 16 came: set num_frames to 4 or leave it out"):
        load_student(student_folder)
    generator = load_student(student_folder, num_frames=NUM_FRAMES)
    with pytest.raises(InputError, match="clips of 4 frames, guidance of 5 came"):
        generator.generate(make_guidance(num_frames=5), seed=0)


def _edit(path, **changes):
    facts = json.loads(path.read_text())
    facts |= changes
    path.write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))


BREAKAGES = {
    "format version 7 and this release reads 1": lambda f: _edit(
        f / "model_index.json", format_version=7
    ),
    "format version None": lambda f: _edit(f / "model_index.json", format_version=None),
    "holds no model_index.json": lambda f: (f / "model_index.json").unlink(),
    "lacks vae/config.json": lambda f: (f / "vae" / "config.json").unlink(),
    "does not record image_context": lambda f: _edit(
        f / "unet" / "config.json", image_context=None
    ),
    "holds a FVGenPipeline and a ViewCrafterPipeline": lambda f: _edit(
        f / "model_index.json", _class_name="FVGenPipeline"
    ),
}


@pytest.mark.parametrize("sentence", BREAKAGES)
def test_folders_of_another_kind_or_version_are_refused(folder, tmp_path, sentence):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    BREAKAGES[sentence](copy)
    with pytest.raises(WeightsError, match=sentence):
        load_teacher(copy)


def test_a_teacher_is_no_student(folder):
    with pytest.raises(WeightsError, match="distil a student"):
        load_student(folder)


def test_a_pipeline_needs_its_base_scale(teacher):
    with pytest.raises(InputError, match="base scale"):
        FVGenPipeline(**teacher.components)


@pytest.mark.gpu
@pytest.mark.parametrize("saver", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_changes_no_value(folder, student_folder, saver):
    clip = make_guidance()
    expected = FVGenPipeline.from_pretrained(student_folder).to("cuda")(clip, generator=_seed())
    pipeline = FVGenPipeline.from_pretrained(student_folder)
    getattr(pipeline, saver)()
    frames = pipeline(clip, generator=_seed()).frames
    torch.testing.assert_close(frames.cpu(), expected.frames.cpu(), atol=1e-3, rtol=1e-3)


def test_kernels_need_a_gpu(student):
    with pytest.raises(InputError, match=r"call to\('cuda'\) first"):
        student.enable_kernels()


@pytest.mark.gpu
def test_compiled_bfloat16_stays_close(student_folder):
    clip = make_guidance()
    expected = FVGenPipeline.from_pretrained(student_folder)(clip, generator=_seed()).frames
    pipeline = FVGenPipeline.from_pretrained(student_folder).to("cuda", torch.bfloat16)
    pipeline.enable_compilation()
    frames = pipeline(clip, generator=_seed()).frames
    assert (frames.cpu() - expected).square().mean().sqrt() < 0.05

"""What a generator is given."""

from dataclasses import replace

import torch
from factories import make_cloud, make_scene

from fvgen_recon.densify.densifier import Densifier, DensifyConfig
from fvgen_recon.densify.generators import GeneratorConfig
from fvgen_recon.diffusion.passthrough import RenderGenerator
from fvgen_recon.render.guidance import guidance_config
from fvgen_recon.render.point import render_points


def test_each_generator_sees_renders_of_the_kind_that_it_was_trained_on() -> None:
    config = DensifyConfig(generator=GeneratorConfig(name="render", num_frames=4), long_side=48)
    cloud = make_cloud()
    clips = {}
    for is_raw in (False, True):
        generator = replace(RenderGenerator(num_frames=4), is_raw=is_raw)
        made = Densifier(config).run(make_scene(2), points=cloud, generator=generator)
        clips[is_raw] = made.clips[0]
    trusted = cloud[cloud.confidence >= config.min_confidence]
    radius = guidance_config(is_raw=True, height=clips[True].cameras.height).radius_px
    bare = render_points(trusted, clips[True].cameras, radius_px=radius).frames.clamp(0, 1)
    between = ~clips[True].guidance.is_anchor
    torch.testing.assert_close(clips[True].frames[between], bare[between])
    assert float((clips[False].frames[between] - bare[between]).abs().max()) > 0.05
    assert guidance_config(is_raw=True, height=576).radius_px == 2 * 1.44

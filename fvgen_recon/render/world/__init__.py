"""Procedural worlds in any number, with exact cameras and depth, for training.

Textured solids (boxes, ellipsoids, tapered cylinders, convex bodies) make up furnished rooms,
tables with small things and yards between houses; rays are traced in torch, fast on a GPU and
usable on a CPU.
"""

from fvgen_recon.render.world.capture import Capture, procedural_capture
from fvgen_recon.render.world.recipe import random_world
from fvgen_recon.render.world.tracer import TraceConfig, render_world
from fvgen_recon.render.world.walk import Walk, plan_walk
from fvgen_recon.render.world.world import World

__all__ = [
    "Capture",
    "TraceConfig",
    "Walk",
    "World",
    "plan_walk",
    "procedural_capture",
    "random_world",
    "render_world",
]

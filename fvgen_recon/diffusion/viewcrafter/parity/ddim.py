"""Schedule, conversions, guidance and DDIM runs against fixtures of the original.

The fixture's runs are driven by a closed-form network whose formula its JSON states; its four
numbers are read from there.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor

from fvgen_recon.diffusion.backbone import Condition
from fvgen_recon.diffusion.sampler import (
    GuidanceScale,
    SampleStep,
    denoiser,
    rescale_guided,
    sample_ddim,
)
from fvgen_recon.diffusion.schedule import Spacing, ViewCrafterSchedule
from fvgen_recon.diffusion.viewcrafter.buffer import original_buffers
from fvgen_recon.diffusion.viewcrafter.parity.fixture import Fixture, difference, read_fixture
from fvgen_recon.errors import InputError
from fvgen_recon.types import Difference

RUN_TOLERANCE = 1e-4
TOLERANCE = 1e-5
EMBEDDING_TOLERANCE = 1e-4
"""Of time embeddings: exponentials differ in their last bit from one processor to the next, and a
time of 999 multiplies that into a phase of 6e-5."""

_NUMBER = r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)"
_FORMULA = re.compile(
    rf"{_NUMBER}\*sin\({_NUMBER}\*?x\) *\+ *s\*\(t/1000\)\*zc *\+ *"
    rf"{_NUMBER}\*roll\(x, *{_NUMBER} along frame axis 2\) *\+ *{_NUMBER}\*s"
)
_SPACINGS: dict[str, Spacing] = {"uniform_trailing": "trailing", "uniform": "uniform"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _FormulaBackbone:
    """v = a sin(b x) + s (t/1000) z_c + c roll(x, d) + e s, with s the mean of the context."""

    a: float
    b: float
    c: float
    d: int
    e: float

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Condition, *, return_mid: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        del return_mid
        mean = condition.context.mean(dim=(1, 2)).reshape(-1, 1, 1, 1, 1)
        time = t.reshape(-1, 1, 1, 1, 1) / 1000
        v = self.a * torch.sin(self.b * x_t) + mean * time * condition.concat
        return v + self.c * x_t.roll(self.d, dims=2) + self.e * mean, ()


def compare_ddim(path: Path) -> tuple[Difference, ...]:
    """Compare schedule, conversions and every run with a fixture.

    Raises:
        InputError: The fixture is of another layout.
    """
    fixture = read_fixture(path)
    try:
        rows = _compare_schedule(fixture) + _compare_training(fixture) + _compare_misc(fixture)
        for name, run in fixture.fact("runs").items():
            rows += _compare_run(fixture, name, run)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a fixture of DDIM runs: {error!r}.") from error
    return tuple(rows)


def _schedule(fixture: Fixture, base_scale: float) -> ViewCrafterSchedule:
    """The schedule whose unscaled variances the fixture holds, or the usual one."""
    before = fixture.tensors.get("sched.betas_before_rescale_f64")
    if before is None:
        return ViewCrafterSchedule(base_scale=base_scale)
    return ViewCrafterSchedule(
        base_scale=base_scale,
        num_timesteps=len(before),
        beta_start=float(before[0]),
        beta_end=float(before[-1]),
    )


def _compare_schedule(fixture: Fixture) -> list[Difference]:
    schedule = _schedule(fixture, 1.0)
    buffers = original_buffers(schedule)
    betas = torch.from_numpy(schedule.betas())
    root = torch.linspace(
        schedule.beta_start**0.5, schedule.beta_end**0.5, len(betas), dtype=torch.float64
    )
    exact = {
        "betas_f64": betas,
        "alphas_cumprod_f64": (1 - betas).cumprod(0),
        "betas_before_rescale_f64": root**2,
    }
    rows = []
    for key, expected in fixture.tensors.items():
        name = key.removeprefix("sched.")
        if name == key:
            continue
        if name.startswith("scale_arr"):
            ours = original_buffers(_schedule(fixture, float(expected[-1])))["scale_arr"]
        elif name.startswith("ddim_timesteps_"):
            ours = _timesteps(schedule, name.removeprefix("ddim_timesteps_"))
        else:
            ours = exact[name] if name in exact else buffers[name]
        rows.append(difference(key, ours, expected, TOLERANCE))
    return rows


def _timesteps(schedule: ViewCrafterSchedule, name: str) -> Tensor:
    """Ascending timesteps for a name such as "50" or "uniform_50"."""
    spacing, _, count = name.rpartition("_")
    times = schedule.timesteps(int(count), "uniform" if spacing == "uniform" else "trailing")
    return times.flip(0)


def _compare_training(fixture: Fixture) -> list[Difference]:
    rows, tensors = [], fixture.tensors
    for kind in sorted({k.partition(".")[0] for k in tensors if k.startswith("train_")}):
        base = float(fixture.tensor(f"sched.scale_arr_{kind.removeprefix('train_')}")[-1])
        schedule = _schedule(fixture, base)
        x0, eps, t = (fixture.tensor(f"train.{name}") for name in ("x0", "noise", "t"))
        scale = schedule.scale(t).reshape(-1, 1, 1, 1, 1)
        x_t, v = schedule.add_noise(x0, eps, t), schedule.target(x0, eps, t)
        ours = {
            "x_scaled": scale * x0,
            "x_t": x_t,
            "v_target": v,
            # What the original calls x0 is still scaled.
            "x0_from_v": scale * schedule.x0_from_output(v, x_t, t),
            "eps_from_v": schedule.eps_from_output(v, x_t, t),
        }
        rows += [
            difference(f"{kind}.{name}", value, fixture.tensor(f"{kind}.{name}"), TOLERANCE)
            for name, value in ours.items()
        ]
    return rows


def _compare_misc(fixture: Fixture) -> list[Difference]:
    rows, tensors = [], fixture.tensors
    for key in sorted(k for k in tensors if k.startswith("misc.")):
        ours = _misc(fixture, key)
        if ours is not None:
            is_embedding = key.startswith("misc.timestep_embedding")
            tolerance = EMBEDDING_TOLERANCE if is_embedding else TOLERANCE
            rows.append(difference(key, ours, tensors[key], tolerance))
    return rows


def _misc(fixture: Fixture, key: str) -> Tensor | None:
    last = key.rpartition("_")[2]
    if key.startswith("misc.timestep_embedding_") and last.isdigit():
        embed = Timesteps(int(last), flip_sin_to_cos=True, downscale_freq_shift=0)
        return embed(fixture.tensor("misc.timestep_embedding_in"))
    if key.startswith("misc.rescale_out_"):
        guided = fixture.tensor("misc.rescale_cfg_in")
        return rescale_guided(guided, fixture.tensor("misc.rescale_text_in"), float(last))
    if key == "misc.v_out":
        x, t = fixture.tensor("misc.v_x"), fixture.tensor("misc.v_t")
        return _backbone(fixture)(x, t, _condition(fixture))[0]
    return None


def _backbone(fixture: Fixture) -> _FormulaBackbone:
    stated = str(fixture.fact("v_function"))
    match = _FORMULA.search(stated)
    if match is None:
        raise InputError(
            f"{fixture.path.with_suffix('.json')} states another network than "
            f"'a*sin(bx) + s*(t/1000)*zc + c*roll(x, d along frame axis 2) + e*s': {stated}"
        )
    a, b, c, d, e = (float(group) for group in match.groups())
    return _FormulaBackbone(a=a, b=b, c=c, d=int(d), e=e)


def _condition(fixture: Fixture) -> Condition:
    return Condition(
        concat=fixture.tensor("in.c_concat"),
        context=fixture.tensor("in.context_cond"),
        null_context=fixture.tensor("in.context_uncond"),
    )


def _compare_run(fixture: Fixture, name: str, run: dict[str, Any]) -> list[Difference]:
    schedule = _schedule(fixture, run["base_scale"])
    spacing = _SPACINGS[run.get("timestep_spacing", "uniform_trailing")]
    times = schedule.timesteps(run["ddim_steps"], spacing)
    guidance = GuidanceScale(scale=float(run["cfg_scale"]), rescale=float(run["guidance_rescale"]))
    steps: list[SampleStep] = []
    out = sample_ddim(
        denoiser(_backbone(fixture), _condition(fixture), guidance),
        fixture.tensor("in.x_T"),
        schedule,
        times=times,
        eta=float(run["eta"]),
        noise=lambda i, like: fixture.tensor("in.noise")[i],
        callback=steps.append,
    )
    ours = _run_tables(schedule, times, float(run["eta"])) | {"x_out": lambda: out}
    ours["x_steps"] = lambda: torch.stack([step.x for step in steps])
    # The original keeps x0 after the rescale to the earlier time.
    ours["pred_x0_steps"] = lambda: torch.stack(
        [s * step.x0 for s, step in zip(schedule.scale(_before(times)), steps, strict=True)]
    )
    rows = []
    for key in sorted(k for k in fixture.tensors if k.startswith(f"{name}.")):
        value = ours[key.removeprefix(f"{name}.")]()
        rows.append(difference(key, value, fixture.tensor(key), RUN_TOLERANCE))
    return rows


def _before(times: Tensor) -> Tensor:
    return torch.cat([times[1:], times.new_zeros(1)])


def _run_tables(
    schedule: ViewCrafterSchedule, times: Tensor, eta: float
) -> dict[str, Callable[[], Tensor]]:
    """The original's tables of a run, which ascend in time."""
    alpha_bar = original_buffers(schedule)["alphas_cumprod"]
    now, before = times.flip(0), _before(times).flip(0)
    return {
        "ddim_timesteps": lambda: now,
        "ddim_alphas": lambda: alpha_bar[now],
        "ddim_alphas_prev": lambda: alpha_bar[before],
        "ddim_scale_arr": lambda: schedule.scale(now),
        "ddim_scale_arr_prev": lambda: schedule.scale(before),
        "ddim_sigmas": lambda: schedule.ddim_coefficients(now, before, eta)[1],
    }

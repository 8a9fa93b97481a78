"""Noise schedules: what a time t means, and the conversions between x0, eps, v and x_t.

All of it lives here: the zero-terminal-SNR rescale, ViewCrafter's dynamic rescale of x0, and the
coefficients of a DDIM step. Samplers and losses never touch an alpha on their own.

`x0` is always the plain clean latent. ViewCrafter's network lives on a shrunk copy `s_t * x0`; that
factor is inside `alpha` and is undone by `x0_from_output`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fvgen_recon.diffusion.backbone import NoiseSchedule
from fvgen_recon.errors import InputError

Prediction = Literal["x0", "velocity"]
Spacing = Literal["trailing", "uniform"]


@runtime_checkable
class SamplingSchedule(NoiseSchedule, Protocol):
    """A schedule that also knows the coefficients of a DDIM step."""

    def eps_from_output(
        self,
        output: Float[Tensor, "B C T h w"],
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
    ) -> Float[Tensor, "B C T h w"]:
        """Return the noise that the network's output stands for; t must be above 0."""
        ...

    def ddim_coefficients(
        self, t: Shaped[Tensor, "B"], t_prev: Shaped[Tensor, "B"], eta: float
    ) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Return the factors of the predicted eps and of fresh noise in a step from t to t_prev."""
        ...


def zero_terminal_snr_betas(
    betas: Float[np.ndarray, "S"],
) -> Float[np.ndarray, "S"]:
    """Shift and stretch a noise schedule so that the last time is pure noise.

    Implements algorithm 1 of "Common Diffusion Noise Schedules and Sample Steps are Flawed"
    (Lin et al. 2023) in float64; in float32 the cumulative products are off by up to 4e-5.

    Args:
        betas: Variances of the single steps.

    Returns:
        The new variances; the first stays, the last is 1.
    """
    root = np.sqrt(np.cumprod(1.0 - betas.astype(np.float64)))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    cumulative = root**2
    alphas = np.concatenate([cumulative[:1], cumulative[1:] / cumulative[:-1]])
    return 1.0 - alphas


@dataclass(frozen=True, slots=True)
class _Tables:
    """Values of a schedule at each time, float32, on one device."""

    alpha_bar: Tensor
    root_alpha_bar: Tensor
    root_noise: Tensor
    scale: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewCrafterSchedule:
    """ViewCrafter's schedule: v-prediction, zero terminal SNR, dynamic rescale of x0.

    With `a = sqrt(alpha_bar)`, `n = sqrt(1 - alpha_bar)` and the rescale `s` at time t:

        x_t = a * s * x0 + n * eps,    v = a * eps - n * s * x0.

    `s` falls from 1 to `base_scale` over the first `rescale_steps` times and stays there.
    """

    base_scale: float
    """The factor of x0 at noisy times: 0.3 for the 1024 models, 0.7 for the 512 model. It belongs
    to the weights (`scale_arr[400]` of the original checkpoint), never to a resolution."""
    num_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    rescale_steps: int = 400

    def __post_init__(self) -> None:
        """Check the range of the rescale."""
        if not 0 < self.base_scale <= 1:
            raise InputError(
                f"A base scale in (0, 1] was expected, {self.base_scale:g} came: read it from the "
                "checkpoint (scale_arr[400])."
            )

    def betas(self) -> Float[np.ndarray, "S"]:
        """Return the variances of the single steps in float64, after the rescale to zero SNR."""
        root = np.linspace(
            self.beta_start**0.5, self.beta_end**0.5, self.num_timesteps, dtype=np.float64
        )
        return zero_terminal_snr_betas(root**2)

    def scale_table(self) -> Float[np.ndarray, "S"]:
        """Return the rescale of x0 in float64: a ramp, then `num_timesteps` times the base."""
        ramp = np.linspace(1.0, self.base_scale, self.rescale_steps)
        return np.concatenate([ramp, np.full(self.num_timesteps, self.base_scale)])

    def alpha_sigma(self, t: Shaped[Tensor, "B"]) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Return the factors of x0 (rescale included) and of eps in x_t."""
        tables = _viewcrafter_tables(self, t.device)
        t = t.long()
        return tables.root_alpha_bar[t] * tables.scale[t], tables.root_noise[t]

    def scale(self, t: Shaped[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Return the rescale `s` of x0 at time t."""
        return _viewcrafter_tables(self, t.device).scale[t.long()]

    def add_noise(
        self,
        x0: Float[Tensor, "B C T h w"],
        eps: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
    ) -> Float[Tensor, "B C T h w"]:
        """Return x_t."""
        alpha, sigma = self.alpha_sigma(t)
        return _column(alpha) * x0 + _column(sigma) * eps

    def target(
        self,
        x0: Float[Tensor, "B C T h w"],
        eps: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
    ) -> Float[Tensor, "B C T h w"]:
        """Return v, the network's target, computed from the rescaled x0."""
        a, n, s = self._parts(t)
        return a * eps - n * (s * x0)

    def x0_from_output(
        self,
        output: Float[Tensor, "B C T h w"],
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
    ) -> Float[Tensor, "B C T h w"]:
        """Return the plain x0 that a predicted v stands for."""
        a, n, s = self._parts(t)
        return (a * x_t - n * output) / s

    def eps_from_output(
        self,
        output: Float[Tensor, "B C T h w"],
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
    ) -> Float[Tensor, "B C T h w"]:
        """Return the noise that a predicted v stands for; the rescale does not touch it."""
        a, n, _ = self._parts(t)
        return a * output + n * x_t

    def ddim_coefficients(
        self, t: Shaped[Tensor, "B"], t_prev: Shaped[Tensor, "B"], eta: float
    ) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Return the factors of eps and of fresh noise in a DDIM step (Song et al. 2021, eq. 16).

        The fresh noise is computed in float64 and the rest in float32, as in the original. At the
        first step with eta = 1 the factor of eps is mathematically 0; the original takes the root
        of what rounding leaves, which is NaN for some step counts. Here it is clamped at 0.
        """
        alpha_bar = _viewcrafter_tables(self, t.device).alpha_bar
        now, before = alpha_bar[t.long()].double(), alpha_bar[t_prev.long()].double()
        fresh = (eta * ((1 - before) / (1 - now) * (1 - now / before)).sqrt()).float()
        direction = (1.0 - before.float() - fresh**2).clamp_min(0).sqrt()
        return direction, fresh

    def timesteps(self, num_steps: int, spacing: Spacing = "trailing") -> Int[Tensor, "S"]:
        """Return descending times.

        Args:
            num_steps: How many.
            spacing: "trailing" starts at pure noise (4 steps: 999, 749, 499, 249); "uniform" is
                the older spacing that starts just below it, kept to compare with the original.

        Raises:
            InputError: The count is not between 1 and `num_timesteps`.
        """
        _require_steps(num_steps, self.num_timesteps)
        if spacing == "trailing":
            ascending = np.arange(self.num_timesteps, 0, -self.num_timesteps / num_steps)[::-1]
            times = np.round(ascending).astype(np.int64) - 1
        else:
            times = np.arange(0, self.num_timesteps, self.num_timesteps // num_steps) + 1
        return torch.from_numpy(times[::-1].copy())

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tables = _viewcrafter_tables(self, t.device)
        t = t.long()
        parts = (tables.root_alpha_bar[t], tables.root_noise[t], tables.scale[t])
        return _column(parts[0]), _column(parts[1]), _column(parts[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowSchedule:
    """Rectified flow: a straight line from x0 to noise (Liu et al. 2023).

    With `u = t / (num_timesteps - 1)` in [0, 1]: `x_t = (1 - u) * x0 + u * eps`. Times may be
    fractional. The network predicts x0 itself or the velocity `eps - x0`.
    """

    prediction: Prediction = "x0"
    num_timesteps: int = 1000
    shift: float = 1.0
    """Above 1 the sampler's times lie at higher noise: u becomes s u / (1 + (s - 1) u) (Esser et
    al. 2024, equation 23)."""

    def alpha_sigma(self, t: Shaped[Tensor, "B"]) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Return the factors of x0 and eps in x_t."""
        sigma = t.float() / (self.num_timesteps - 1)
        return 1.0 - sigma, sigma

    def add_noise(
        self,
        x0: Float[Tensor, "B C T h w"],
        eps: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
    ) -> Float[Tensor, "B C T h w"]:
        """Return x_t."""
        alpha, sigma = self.alpha_sigma(t)
        return _column(alpha) * x0 + _column(sigma) * eps

    def target(
        self,
        x0: Float[Tensor, "B C T h w"],
        eps: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
    ) -> Float[Tensor, "B C T h w"]:
        """Return x0 or the velocity."""
        del t
        return x0 if self.prediction == "x0" else eps - x0

    def x0_from_output(
        self,
        output: Float[Tensor, "B C T h w"],
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
    ) -> Float[Tensor, "B C T h w"]:
        """Return x0."""
        if self.prediction == "x0":
            return output
        return x_t - _column(self.alpha_sigma(t)[1]) * output

    def eps_from_output(
        self,
        output: Float[Tensor, "B C T h w"],
        x_t: Float[Tensor, "B C T h w"],
        t: Shaped[Tensor, "B"],
    ) -> Float[Tensor, "B C T h w"]:
        """Return the noise; with x0-prediction t must be above 0."""
        alpha, sigma = self.alpha_sigma(t)
        if self.prediction == "velocity":
            return x_t + _column(alpha) * output
        return (x_t - _column(alpha) * output) / _column(sigma)

    def ddim_coefficients(
        self, t: Shaped[Tensor, "B"], t_prev: Shaped[Tensor, "B"], eta: float
    ) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Return the factors of eps and of fresh noise; eta = 1 is the exact posterior of x_t_prev.

        The variance of fresh noise is `eta^2 s_p^2 (1 - (a s_p / (a_p s))^2)`, which for a
        variance-preserving schedule is the one of DDIM.
        """
        (a, s), (a_p, s_p) = self.alpha_sigma(t), self.alpha_sigma(t_prev)
        fresh = eta * s_p * (1 - (a * s_p / (a_p * s)) ** 2).clamp_min(0).sqrt()
        return (s_p**2 - fresh**2).clamp_min(0).sqrt(), fresh

    def timesteps(self, num_steps: int) -> Int[Tensor, "S"]:
        """Return descending times, the first one pure noise; evenly spaced before the shift.

        Raises:
            InputError: The count is not between 1 and `num_timesteps`.
        """
        _require_steps(num_steps, self.num_timesteps)
        u = np.arange(num_steps, 0, -1) / num_steps
        times = self.shift * u / (1 + (self.shift - 1) * u) * (self.num_timesteps - 1)
        return torch.from_numpy(np.round(times).astype(np.int64))


def _require_steps(num_steps: int, num_timesteps: int) -> None:
    if not 1 <= num_steps <= num_timesteps:
        raise InputError(
            f"A number of steps between 1 and {num_timesteps} was expected, {num_steps} came."
        )


def _column(values: Tensor) -> Tensor:
    """Shape [B] for multiplying with [B C T h w]."""
    return values[:, None, None, None, None]


@lru_cache(maxsize=16)
def _viewcrafter_tables(schedule: ViewCrafterSchedule, device: torch.device) -> _Tables:
    alpha_bar = np.cumprod(1.0 - schedule.betas())
    scale = schedule.scale_table()[: schedule.num_timesteps]

    def table(values: np.ndarray) -> Tensor:
        # The tables outlive the caller: made in inference mode they could never be trained with.
        with torch.inference_mode(False):
            return torch.from_numpy(values).float().to(device)

    return _Tables(
        alpha_bar=table(alpha_bar),
        root_alpha_bar=table(np.sqrt(alpha_bar)),
        root_noise=table(np.sqrt(1.0 - alpha_bar)),
        scale=table(scale),
    )

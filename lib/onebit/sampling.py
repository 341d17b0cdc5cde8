"""Sampling: diffusers' schedulers behind one function; noise belongs to an image's number, not to its batch."""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from operator import index
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .connections import connections_of
from .diffusion import SCHEDULE, TIMESTEPS, predict
from .errors import Diverged, unknown
from .frozen import frozen, sharing_weights

BATCH = 64  # images that a CPU thread takes at a time: of 50 to 250 all cost about the same, of 16 a tenth more
GPU_BATCH = 250
LEAST = 8  # images that are worth a thread
PRECISIONS = ("float32", "bfloat16")  # of the network's layers
WORKERS = 8  # a step has 2 ms of overhead, much of it under the interpreter lock, beside some 60 ms for 64 images


def _ddpm(common: dict):
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    # "fixed_large" is variance beta_t; clip_sample=False leaves the implied x0 alone: both as in source 000
    return DDPMScheduler(variance_type="fixed_large", clip_sample=False, timestep_spacing="trailing", **common)


def _ddim(common: dict):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing", **common)


def _pndm(common: dict):
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler

    # skip_prk_steps: the linear multistep part alone (PLMS), one more network call than steps
    return PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True, timestep_spacing="trailing", **common)


def _dpm_solver(common: dict, algorithm: str = "dpmsolver++"):
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        algorithm_type=algorithm, solver_order=2, lower_order_final=True, final_sigmas_type="zero",
        timestep_spacing="trailing", **common,
    )


def _sde_dpm_solver(common: dict):
    return _dpm_solver(common, "sde-dpmsolver++")


# "trailing" everywhere: every grid starts at T-1, where training ended up; diffusers' default grids never visit it
SAMPLERS: dict[str, Callable] = {
    "ddpm": _ddpm, "ddim": _ddim, "ddim-eta1": _ddim, "pndm": _pndm, "dpm-solver++": _dpm_solver,
    "sde-dpm-solver++": _sde_dpm_solver,
}
# draw noise on their way; what their steps are told beside
STOCHASTIC = {"ddpm": {}, "ddim-eta1": {"eta": 1.0}, "sde-dpm-solver++": {}}
# cannot be entered halfway: a step needs what earlier ones predicted
WITH_HISTORY = ("pndm", "dpm-solver++", "sde-dpm-solver++")
# the cheapest whose interval of distances ends no higher than the published sampler's, in float and in 1 bit (notebook
# 04); the study itself draws by DDIM, which adds no noise, so that images of a start can be compared
CHEAPEST = ("sde-dpm-solver++", 20)
# diffusers takes t - T // steps for the next timestep of these, which leaves their grid where steps do not divide T
STRIDED = ("ddim", "ddim-eta1", "pndm")


def scheduler(sampler: str, steps: int):
    """A diffusers scheduler on our noise schedule, its timestep grid set.

    `ddpm`: ancestral, variance beta_t, no clipping (source 000).  `ddim`: eta = 0 (arXiv:2010.02502 Eq. 12);
    `ddim-eta1`: the same with eta = 1 (Eq. 16), fresh noise at every step.
    `pndm`: PLMS (arXiv:2202.09778 Eq. 11-12).  `dpm-solver++`: second-order multistep (arXiv:2211.01095 Alg. 2);
    `sde-dpm-solver++`: the same of the SDE (section 6 there), fresh noise in every step but the last.

    Raises    ValueError for an unknown sampler, steps outside 1..T, or steps that do not divide T for ddim and pndm.
    """
    if sampler not in SAMPLERS:
        unknown("sampler", sampler, SAMPLERS)
    if not isinstance(steps, Integral) or not 1 <= steps <= TIMESTEPS:
        raise ValueError(f"steps must be a whole number in 1..{TIMESTEPS}, got {steps!r}")
    if sampler in STRIDED and TIMESTEPS % steps:
        raise ValueError(f"{sampler} needs steps that divide {TIMESTEPS}, got {steps}")
    made = SAMPLERS[sampler](dict(
        num_train_timesteps=TIMESTEPS, beta_start=SCHEDULE.beta_start, beta_end=SCHEDULE.beta_end,
        beta_schedule="linear", prediction_type="epsilon",
    ))
    made.set_timesteps(steps)
    if made.timesteps.min() < 0:  # diffusers' float range can overshoot by a timestep -1
        raise ValueError(f"{sampler} has no sound grid of {steps} steps; use a divisor of {TIMESTEPS}")
    return made


def generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator per image, seeded by (seed, image number) alone."""
    words = (int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0]) for i in indices)
    return [torch.Generator().manual_seed(word & (2**63 - 1)) for word in words]


def sample(
    model: nn.Module,
    indices: int | Sequence[int],
    *,
    shape: tuple[int, int, int],
    sampler: str = CHEAPEST[0],
    steps: int = CHEAPEST[1],
    seed: int = 0,
    batch: int | None = None,
    progress: bool = False,
    start: Tensor | None = None,
    remaining: int | None = None,
    precision: str = "float32",
) -> Tensor:
    """Generate images.  Image i is a function of (weights, sampler, steps, seed, i), whatever batch it travels in.

    The start x_T and, for `STOCHASTIC` samplers, the noise of every step are drawn on the CPU by the image's own
    generator, so that all models can start from the same noise and a GPU changes nothing but rounding.  The rows of
    `start` take the place of the x_T; a sampler that is not stochastic then draws nothing.  With `remaining`, only that
    many last steps are taken: `start` is x_t at the first of their timesteps (`scheduler(...).timesteps[-remaining]`).

    The model is not touched: `frozen` copies of it run in eval mode, on a CPU as many at a time as torch has threads,
    each with its own batch.  Two threads that share a batch wait for each other in every layer.

    With `precision` "bfloat16" the network is called under autocast, and the sampler's own arithmetic stays float32:
    up to 2.6 times as fast where `resolve_precision("auto")` is that, slower elsewhere, and images that differ by what
    such rounding of every layer grows to (notebook 08).  A float network whose weights lie in channels_last takes
    up to a quarter less time on a CPU, in either.

    Shapes    indices: n for images 0 .. n-1, or their numbers; shape (C, H, W) -> (n, C, H, W) float32 on the CPU.
              start (n, C, H, W), one row per index.  `batch`: images per call of the network; it is chosen if None.
    Units     [-1, 1], clamped once at the end.
    Raises    ValueError as `scheduler`, for an empty or negative request, a shape that is not three positive sizes, a
              negative seed or a batch of no images, for an unknown precision, for a start that is not of these shapes
              or not finite floats, or for remaining steps that are not 1..steps, have no start, or a sampler that
              builds on earlier ones, or a model as `diffusion.predict`; Diverged for an image with NaN or infinity
              in it.
    """
    numbers = _numbers(indices)
    scheduler(sampler, steps)
    _check_request(shape, seed, batch, precision)
    if start is not None:
        _check_start(start, (len(numbers), *shape))
    if remaining is not None:
        _check_remaining(remaining, sampler, steps, start)
    workers = _workers(model, len(numbers))
    batch = _batch(model, len(numbers), workers) if batch is None else batch
    parts = [slice(i, i + batch) for i in range(0, len(numbers), batch)]

    def draw(network: nn.Module, part: slice) -> Tensor:
        own = None if start is None else start[part]
        with torch.inference_mode(), _following(network), _computing(network, precision):
            return sample_batch(network, numbers[part], shape, sampler, steps, seed, own, remaining)

    return torch.cat(list(_spread(draw, frozen(model), parts, min(workers, len(parts)), progress)))


def _numbers(indices: int | Sequence[int]) -> Sequence[int]:
    wrong = ValueError(f"indices must be a positive count or image numbers >= 0, got {indices}")
    try:
        numbers = range(indices) if isinstance(indices, Integral) else [index(i) for i in indices]
    except TypeError:  # a fraction is no image's number
        raise wrong from None
    if not len(numbers) or min(numbers) < 0:
        raise wrong
    return numbers


def _check_request(shape: tuple[int, int, int], seed: int, batch: int | None, precision: str) -> None:
    if len(shape) != 3 or not all(isinstance(size, Integral) and size >= 1 for size in shape):
        raise ValueError(f"shape must be (C, H, W), three positive sizes such as (1, 28, 28), got {tuple(shape)}")
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed}")
    if batch is not None and not (isinstance(batch, Integral) and batch >= 1):
        raise ValueError(f"batch must be a whole number of at least 1 image, or None to have it chosen, got {batch}")
    if precision not in PRECISIONS:
        unknown("precision", precision, PRECISIONS)


def _workers(model: nn.Module, n: int) -> int:
    """How many batches of n images run at a time.  One on a GPU; and with our kernels, which let one Python
    thread in at a time (`kernels.threads.alone`)."""
    kernels = any(type(module).__module__.startswith(f"{__package__}.kernels") for module in model.modules())
    if kernels or _place(model).type != "cpu":
        return 1
    return min(torch.get_num_threads(), WORKERS, math.ceil(n / LEAST))


def _batch(model: nn.Module, n: int, workers: int) -> int:
    """Batches that come out even: none is much larger than BATCH, and no worker has one more to do than another."""
    if _place(model).type != "cpu":
        return GPU_BATCH
    rounds = math.ceil(n / (workers * BATCH))
    return math.ceil(n / (workers * rounds))


def _place(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))  # meta: a mapped weight


def _spread(
    draw: Callable[[nn.Module, slice], Tensor], network: nn.Module, parts: list[slice], workers: int, progress: bool,
) -> Iterable[Tensor]:
    """draw(network, part) of every part in order; several at a time, each on a copy of its own."""
    bar = {"desc": "sampling", "total": len(parts), "disable": not progress}
    if workers == 1:
        yield from tqdm((draw(network, part) for part in parts), **bar)
        return
    idle, threads = SimpleQueue(), torch.get_num_threads()
    for copied in [network, *(sharing_weights(network) for _ in range(workers - 1))]:
        idle.put(copied)

    def job(part: slice) -> Tensor:
        mine = idle.get()
        try:
            return draw(mine, part)
        finally:
            idle.put(mine)

    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
    try:
        yield from tqdm(pool.map(job, parts), **bar)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or an interrupt, what has not begun need not begin
        torch.set_num_threads(threads)  # a thread's own setting is also what threads to come start with


def _following(model: nn.Module) -> contextlib.AbstractContextManager:
    """Cross-timestep connections hand block outputs from one step of this trajectory to the next."""
    connections = connections_of(model)
    return contextlib.nullcontext() if connections is None else connections.following()


def _computing(model: nn.Module, precision: str) -> contextlib.AbstractContextManager:
    return torch.autocast(_place(model).type, torch.bfloat16, enabled=precision == "bfloat16")


def _check_start(start: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(start, Tensor):
        raise ValueError(f"start must be a tensor, got {type(start).__name__}: torch.from_numpy makes one of an array")
    if tuple(start.shape) != shape or not start.is_floating_point():
        raise ValueError(f"start must be floats {shape}, one row per index, got {start.dtype} {tuple(start.shape)}")
    if not start.isfinite().all():
        raise ValueError("start holds NaN or infinity")


def _check_remaining(remaining: int, sampler: str, steps: int, start: Tensor | None) -> None:
    if not isinstance(remaining, Integral) or not 1 <= remaining <= steps:
        raise ValueError(f"remaining must be in 1..steps = 1..{steps}, got {remaining}")
    if start is None:
        raise ValueError("remaining needs a start: the noised images that the first of these steps is taken from")
    if sampler in WITH_HISTORY:
        raise ValueError(f"remaining: {sampler} cannot be entered halfway, a step builds on earlier ones; use ddim")


def sample_batch(
    model: nn.Module, numbers: Sequence[int], shape: tuple[int, int, int], sampler: str = CHEAPEST[0],
    steps: int = CHEAPEST[1], seed: int = 0, start: Tensor | None = None, remaining: int | None = None,
) -> Tensor:
    """The images of these numbers as one batch, by the network itself and none of its copies: hooks on it see it all.

    Shapes, Units    as `sample`, which checks its arguments and calls this; the model has to be in eval mode.
    Raises           ValueError as `diffusion.predict`; Diverged for an image with NaN or infinity in it.
    """
    device = _place(model)
    layout = torch.channels_last
    made = scheduler(sampler, steps)  # a scheduler keeps a history; each batch gets its own
    own = generators(seed, numbers)
    if start is None:
        start = torch.stack([torch.randn(shape, generator=g, dtype=torch.float32) for g in own])
    x = start.float().to(device) * made.init_noise_sigma
    extra = STOCHASTIC[sampler] | {"generator": own} if sampler in STOCHASTIC else {}
    for t in made.timesteps if remaining is None else made.timesteps[-remaining:]:
        timestep = torch.full((len(x),), int(t), device=device)
        noise = predict(model, x.contiguous(memory_format=layout), timestep)
        done = made.step(noise.contiguous(), t, x, **extra)
        x = done.prev_sample
    if sampler == "ddpm":  # Alg. 2: z = 0 in the last step, whose mean is the implied x0; diffusers asks for t = 0
        x = done.pred_original_sample
    if not x.isfinite().all():  # clamped, infinity would be white or black, and NaN black in uint8
        broken = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise Diverged(f"{len(broken)} of {len(x)} samples hold NaN or infinity, image {numbers[broken[0]]} first: the "
                       f"network or its weights are broken; train it anew")
    return x.clamp(-1, 1).cpu().contiguous()

"""Cross-timestep connections: block outputs of the previous, noisier timestep are mixed into the present ones."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .diffusion import TIMESTEPS, add_noise
from .quantizers.timed import Clock, in_backward
from .taps import UP_BLOCKS, first, matching

Cache = dict[str, Tensor]  # site -> its output at another timestep


class Connections(nn.Module):
    r"""BiDM's timestep-friendly structure (TBS), its second half: connections across timesteps, for named sites.

        out_m(t) = (1 - a) U_m(t) + a stopgrad(cache_m),    a = alpha[t rows / T, m]

    U_m is the output of block m before the next skip is concatenated; the cache holds U_m of the noisier timestep.
    Without one of the modes below the network is the one without connections:

        with c.recording() as cache: ...   every call writes its own outputs, unmixed, into the cache
        with c.mixing(cache): ...          every call mixes that cache in: the training pass
        with c.following(): ...            every call mixes in what the call before put out, the first one nothing:
                                           one trajectory of a sampler, one batch

    `cache_dt` says how many timesteps before, on the noisier side, the cache of a training step is taken.

    Shapes    alpha (rows, sites); timestep (B,), or one for all; outputs (B, ...), as the cache's.
    Units     alpha dimensionless and free (no sigmoid), at first `initial`; t counts 0 .. T-1, `timesteps` is T.
    Backward  d out / d U = 1 - a;  dL/d alpha[r, m] = sum g (cache - U) over the samples of row r;  none to the cache.
    Raises    ValueError for rows outside 1..timesteps, no sites, a cache without one of the sites or of other shapes,
              or a call without timestep; RuntimeError for a mode within a mode, or where `torch.utils.checkpoint`
              computes a site again in the backward pass of a call that mixed, after the mode has ended.
    Source    BiDM (arXiv:2412.05926) Eq. 12; start 0.3 and 100 rows of ten timesteps as its LDM code.
    DIFFERS   all up blocks are sites by default (the paper: the last 8 on LSUN, 2 on CIFAR-10).  Its CIFAR code shares
              one coefficient among four sites, starting at 0.
    """

    _learnt = False  # whether a call mixed with gradient: its backward pass needs the mode where blocks are recomputed

    def __init__(self, sites: Iterable[str], timesteps: int = TIMESTEPS, rows: int = 100, initial: float = 0.3,
                 cache_dt: int = 1):
        super().__init__()
        self.sites = tuple(sites)
        if not self.sites:
            raise ValueError("sites must name at least one module")
        if not 1 <= rows <= timesteps:
            raise ValueError(f"rows must be in 1..{timesteps}, got {rows}")
        if cache_dt < 1:
            raise ValueError(f"cache_dt must be at least 1 timestep, got {cache_dt}")
        self.timesteps, self.rows, self.cache_dt = timesteps, rows, cache_dt
        self.alpha = nn.Parameter(torch.full((rows, len(self.sites)), float(initial)))
        self.clock = Clock()
        self._rest()

    def _rest(self) -> None:
        """No mode: nothing is mixed (`_source`), nothing recorded (`_sink`)."""
        self._source: Cache | None = None
        self._sink: Cache | None = None
        self._following = self._recursive = False

    @contextlib.contextmanager
    def _mode(self) -> Iterator[None]:
        if self._source is not None or self._sink is not None:
            raise RuntimeError("connections are in a mode already; leave recording, mixing or following first")
        try:
            yield
        finally:
            self._rest()

    @contextlib.contextmanager
    def recording(self) -> Iterator[Cache]:
        """Write the sites' outputs into the cache it gives; nothing is mixed."""
        with self._mode():
            self._sink = cache = {}
            yield cache

    @contextlib.contextmanager
    def mixing(self, cache: Cache) -> Iterator[None]:
        """Mix `cache` into the sites' outputs."""
        if missing := set(self.sites) - set(cache):
            raise ValueError(f"cache lacks {', '.join(sorted(missing))}; take one that `recording` filled")
        with self._mode():
            self._source = cache
            yield

    @contextlib.contextmanager
    def following(self, recursive: bool = True) -> Iterator[None]:
        """Mix in the outputs of the call before: what it put out, or with `recursive=False` what it had computed.

        Recursive, as released, makes of them an exponential average over the trajectory; raw is what training does.
        """
        with self._mode():
            self._sink, self._following, self._recursive = {}, True, recursive
            yield

    def begin(self) -> None:
        """A call of the network begins: its cache is what the call before left."""
        if self._following:
            self._source, self._sink = self._sink or None, {}
        if self._source is not None and torch.is_grad_enabled():
            self._learnt = True

    def visit(self, site: int, output: Tensor) -> Tensor:
        """What goes on in the network in place of that site's output."""
        name = self.sites[site]
        if self._source is None and self._learnt and in_backward():
            raise RuntimeError(f"{name} is computed again in the backward pass, by torch.utils.checkpoint, after the "
                               "connections' mode has ended, and would not be mixed: leave checkpointing off for the "
                               "blocks that are sites, or call backward() inside `with connections.mixing(cache)`")
        mixed = output if self._source is None else self._mix(site, output, self._source[name])
        if self._sink is not None:
            self._sink[name] = (mixed if self._recursive else output).detach().clone()  # SiLU(inplace=True) may follow
        return mixed

    def _mix(self, site: int, output: Tensor, cached: Tensor) -> Tensor:
        name, time = self.sites[site], self.clock.timestep
        if cached.shape != output.shape:
            raise ValueError(f"{name}: the cache is {tuple(cached.shape)}, the output {tuple(output.shape)}; "
                             "a cache serves one batch: enter `following` anew for every other")
        if time is None:
            raise ValueError("connections need the timestep: call the model with (x, timestep)")
        row = torch.div(time.to(output.device) * self.rows, self.timesteps, rounding_mode="floor").long()
        a = self.alpha[row, site].view(-1, *[1] * (output.ndim - 1))  # (B, 1, 1, 1)
        wide = torch.promote_types(output.dtype, a.dtype)  # in bfloat16 the gradient of alpha would be rounded
        return torch.lerp(output.to(wide), cached.detach().to(wide), a.to(wide)).to(output.dtype)

    def extra_repr(self) -> str:
        return f"sites={', '.join(self.sites)}, rows={self.rows}"


class _Begin:
    """Root hook.  An object and no closure: in a copy of the model it belongs to the copy's connections."""

    def __init__(self, connections: Connections):
        self.connections = connections

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.connections.clock(module, args, kwargs)
        self.connections.begin()


class _Site:
    """Hook of one site."""

    def __init__(self, connections: Connections, site: int):
        self.connections, self.site = connections, site

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        mixed = self.connections.visit(self.site, first(output))
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed


def connections_of(model: nn.Module) -> Connections | None:
    """The connections of a network, or of the one that a wrapper holds; None if there are none."""
    return next((module for module in model.modules() if isinstance(module, Connections)), None)


def site_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The sites of a network's connections by name: modules of what the connections were attached to, which a wrapper
    may hold; {} if there are none."""
    connections = connections_of(model)
    if connections is None:
        return {}
    host = next(module for module in model.modules() if connections in module.children())
    return {name: host.get_submodule(name) for name in connections.sites}


def attach(model: nn.Module, patterns: Iterable[str] = UP_BLOCKS, **options) -> Connections:
    """Add `Connections(sites, **options)` to the model as `model.connections`, on every module that matches.

    The model is then called as (x, timestep), the timestep by position or by name.

    Raises    ValueError as Connections, for patterns that match nothing, or for a model that has connections, or an
              attribute of that name.
    """
    connections = _made_for(model, patterns, **options)
    install(model, connections)
    return connections


def install(model: nn.Module, connections: Connections) -> list[RemovableHandle]:
    """Put connections that were made for this model into it; the handles take their hooks away again."""
    connections.clock = Clock(model)
    handles = [model.register_forward_pre_hook(_Begin(connections), with_kwargs=True)]
    for i, site in enumerate(connections.sites):
        handles.append(model.get_submodule(site).register_forward_hook(_Site(connections, i)))
    model.connections = connections.train(model.training)
    return handles


def _made_for(model: nn.Module, patterns: Iterable[str], **options) -> Connections:
    """Connections for the modules that match; the model is not touched yet."""
    if connections_of(model) is not None:
        raise ValueError("the model has connections already; build a new one for others")
    if hasattr(model, "connections"):
        raise ValueError(f"{type(model).__name__} has an attribute `connections` of its own, where these would go: "
                         "give that another name, or use a recipe with connections=none")
    return Connections(matching(model, patterns), **options).to(next(model.parameters()).device)


def _none(model: nn.Module) -> None:
    """No connections."""


def _tbs(model: nn.Module, patterns: str = "", *, timesteps: int = TIMESTEPS, rows: int = 100,
         initial: float = 0.3, cache_dt: int = 1) -> Connections:
    """Connections of the patterns in one word, "up.1+up.2", or of every up block."""
    return _made_for(model, patterns.split("+") if patterns else UP_BLOCKS,
                     timesteps=timesteps, rows=rows, initial=initial, cache_dt=cache_dt)


CONNECTIONS = {"none": _none, "tbs": _tbs}  # by the name that a recipe gives them; for a model, without touching it


def neighbour(model: nn.Module, x0: Tensor, noise: Tensor, timestep: Tensor, cache_dt: int | None = None) -> Cache:
    r"""The cache of a training step: block outputs at the noisier timestep t', from the same image and noise.

        t' = min(t + cache_dt, T - 1),    x_t' = sqrt(alpha_bar_t') x_0 + sqrt(1 - alpha_bar_t') eps

    The pass is made without gradient and in the model's mode (in training, with its batch's statistics), but batch
    norms do not count it: their running statistics come from the main pass alone.

    `cache_dt` is that of the model's connections unless it is given.

    Shapes    as `diffusion.add_noise`.
    Raises    ValueError for cache_dt < 1 or a model without connections.
    Source    BiDM's released training step (methods 3.3), where t' = t + 1, while its sampler goes in strides of 5
              or 10: `cache_dt` can be that stride.
    DIFFERS   the released pass keeps its graph, to no effect but memory, and counts in the running statistics.
    """
    connections = connections_of(model)
    if connections is None:
        raise ValueError("the model has no connections; attach(model) adds them")
    cache_dt = connections.cache_dt if cache_dt is None else cache_dt
    if cache_dt < 1:
        raise ValueError(f"cache_dt must be at least 1 timestep, got {cache_dt}")
    later = (timestep + cache_dt).clamp_max(TIMESTEPS - 1)
    with connections.recording() as cache, torch.no_grad(), _uncounted(model):
        model(add_noise(x0, noise, later), later)
    return cache


@contextlib.contextmanager
def _uncounted(model: nn.Module) -> Iterator[None]:
    """Batch norms in training mode normalise as ever and leave their running statistics alone."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
             and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True

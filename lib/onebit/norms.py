"""Batch-norm statistics as plain means: what a low-bit network is to be compared with."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def reestimating(model: nn.Module) -> Iterator[None]:
    """Within it every pass of `model` counts for its batch norms' running statistics, all alike.

    Those that training leaves are moving averages over its last ten batches or so, which the noise of few bits can move
    far from what the network, as it then is, computes.  A hundred batches of training inputs are plenty:

        with torch.no_grad(), reestimating(model):
            for x_t, timestep in batches:
                model(x_t, timestep)

    The model is in training mode meanwhile; afterwards every module is in the mode it was in.  A batch norm that no
    pass has reached keeps its statistics, and so do all if a pass raises something.

    Raises    ValueError at the end if no pass has reached any of the model's batch norms.
    Source    Nagel et al. 2022, Overcoming Oscillations in Quantization-Aware Training (arXiv:2203.11086).
    """
    norms = list(batch_norms(model).values())
    momenta, modes = [m.momentum for m in norms], {m: m.training for m in model.modules()}
    before = {m: [x.clone() for x in m.buffers(recurse=False)] for m in norms}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches that follow
    try:
        model.train()
        yield
        idle = [norm for norm in norms if not norm.num_batches_tracked]
        _restore(idle, before)
        if norms and len(idle) == len(norms):
            raise ValueError("reestimating: no batch has reached a batch norm of the model; run the model within it")
    except BaseException:
        _restore(norms, before)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The model's batch norms that keep running statistics, by name."""
    return {name: m for name, m in model.named_modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats}


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of the model's batch norms, the buffers themselves, by their names in its state."""
    return {f"{name}.{key}": buffer for name, norm in batch_norms(model).items()
            for key, buffer in norm.named_buffers(recurse=False)}


def _restore(norms: list[nn.Module], before: dict[nn.Module, list[Tensor]]) -> None:
    for norm in norms:
        for x, old in zip(norm.buffers(recurse=False), before[norm], strict=True):
            x.copy_(old)

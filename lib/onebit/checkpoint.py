"""Training state on disk: one safetensors file and a small JSON that vouches for it."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .files import replacing, sha256, write_json

NOTE = "checkpoint.json"
ELSEWHERE = "give this run another folder, or remove that one"


@dataclass
class State:
    """All that the rest of a run depends on.  `ema` is empty when averaging is off; an `objective` that is a module
    has its state kept too; `precision` is that of the arithmetic, which another machine might choose otherwise;
    `settings`, by name, have to be those that the checkpoint was made under: recipe and images count as such."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: list[Tensor]
    objective: Callable | None = None
    precision: str = "float32"
    step: int = 0
    log: list[dict] = field(default_factory=list)
    snapshots: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    settings: dict = field(default_factory=dict)


def save(folder: Path, state: State) -> None:
    """Write the state; a kill at any moment leaves the previous checkpoint or this one."""
    path = folder / _name(state.step)
    with replacing(path) as partial:
        save_file(_tensors(state), partial)
    note = {"file": path.name, "sha256": sha256(path), "step": state.step, "seconds": state.seconds, "log": state.log,
            "precision": state.precision, "settings": state.settings}
    write_json(folder / NOTE, note)
    for old in folder.glob("checkpoint-*.safetensors"):
        if old != path:
            old.unlink()


def _name(step: int) -> str:
    return f"checkpoint-{step}.safetensors"


def restore(folder: Path, state: State) -> None:
    """Fill `state` from the folder's checkpoint, if it has a sound one.

    A damaged checkpoint is reported, set aside as *.corrupt, and the run starts over.

    Raises    ValueError for a checkpoint of other settings or another network; one that says nothing of a setting, as
              older ones do of recipe and images, fits.
    """
    note_path = folder / NOTE
    if not note_path.exists():
        return
    try:
        note = json.loads(note_path.read_text())
        path = folder / note["file"]
        if sha256(path) != note["sha256"]:
            raise ValueError(f"checksum of {path.name} differs")
        tensors = load_file(path)
        step, seconds, log = int(note["step"]), float(note["seconds"]), list(note["log"])
        if path.name != _name(step):
            raise ValueError(f"{path.name} is said to be of step {step}")
        settings, precision = dict(note.get("settings", {})), str(note.get("precision", state.precision))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        warnings.warn(f"checkpoint in {folder} is damaged ({error}); set aside, training starts over", stacklevel=2)
        for damaged in [note_path, *folder.glob("checkpoint-*.safetensors")]:
            damaged.rename(damaged.with_name(f"{damaged.name}.corrupt"))
        return
    _check_settings(folder, settings, state.settings)
    _fill(folder, state, tensors)
    state.step, state.seconds, state.log, state.precision = step, seconds, log, precision


def _check_settings(folder: Path, saved: dict, asked: dict) -> None:
    """Weights that began under other settings would be those of neither run."""
    other = [f"{name} {saved[name]!r} there, {value!r} now" for name, value in asked.items()
             if name in saved and saved[name] != value]
    if other:
        raise ValueError(f"{folder} holds the checkpoint of a run with other settings: {'; '.join(other)}; {ELSEWHERE}")


def clear(folder: Path) -> None:
    """Remove the checkpoint of a finished run."""
    for path in [folder / NOTE, *folder.glob("checkpoint-*.safetensors")]:
        path.unlink(missing_ok=True)


def separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: contiguous, and each, of those that share memory (tied weights) too, in
    memory of its own."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return apart


def _tensors(state: State) -> dict[str, Tensor]:
    tensors = {f"model.{k}": v for k, v in state.model.state_dict().items()}
    if isinstance(state.objective, nn.Module):
        tensors |= {f"objective.{k}": v for k, v in state.objective.state_dict().items()}
    for i, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in values.items()}
    tensors |= {f"ema.{i}": v for i, v in enumerate(state.ema)}
    tensors |= {f"snapshot.{k}": v for k, v in state.snapshots.items()}
    return separate(tensors)


def _fill(folder: Path, state: State, tensors: dict[str, Tensor]) -> None:
    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        state.model.load_state_dict(part("model."))
        if isinstance(state.objective, nn.Module):
            state.objective.load_state_dict(part("objective."))
    except RuntimeError as error:  # other names or shapes
        raise ValueError(f"{folder} holds the checkpoint of another network ({error}); {ELSEWHERE}") from error
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in part("optimizer.").items():
        i, name = key.split(".", 1)
        like = parameters[int(i)] if value.ndim else value  # fused Adam walks memory: layouts must agree
        moments.setdefault(int(i), {})[name] = torch.empty_like(like).copy_(value)
    state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": moments})
    for i, value in part("ema.").items():
        state.ema[int(i)].copy_(value)
    state.snapshots = part("snapshot.")

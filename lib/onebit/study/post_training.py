"""What a post-training recipe makes of a run's trained float network."""

from copy import deepcopy

from torch import nn

from .. import data, post_training, recipes
from ..batches import STATISTICS, Batches
from ..diffusion import add_noise
from .run import Run

CALIBRATION_BATCHES = 2  # of noised training images that a calibrated network is fitted on


def quantize_trained(model: nn.Module, run: Run) -> None:
    """Quantize the float network of `run.trained`, in eval mode, by the run's recipe, in place; a calibrated one is
    shown the first batches of images, noise and timesteps that batch-norm statistics would be estimated on.

    Raises    as `recipes.quantize` and `post_training.fit`.
    """
    how = recipes.recipe(run.recipe)
    reference = deepcopy(model)
    recipes.quantize(model, how)
    if how.post_training == "nearest":
        post_training.fit(model)
    elif how.post_training == "calibrated":
        draw = Batches(data.load(run.dataset, "train").images, run.settings, STATISTICS)
        batches = [draw(step) for step in range(CALIBRATION_BATCHES)]
        inputs = [(add_noise(x0, noise, timestep), timestep) for x0, noise, timestep in batches]
        post_training.fit(model, reference, inputs)

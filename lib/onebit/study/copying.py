"""Copies of the few images that a network was trained on, told from what is merely like them."""

import numpy as np

from .. import data, metrics
from .evaluation import Measured, Protocol
from .sources import Control, Samples

OTHERS = 20  # sets of as many images that were not trained on, at most
PAIRS = 10  # samples kept as pictures


def copying(source: Samples | Control, protocol: Protocol, wait: bool) -> Measured:
    """Nearest images among those that the source's network was trained on, and among as many others, in pixels.

    The source's data set is to have a limit ("mnist@100").  The others come from its training split too, and no image
    is in two sets.  A control's network is one that had learned from the images of the control's data set.

    Estimates  nearer_seen, memorized, distance_ratio: see `onebit.metrics`; all of the images trained on.
    Arrays     pair_samples, pair_train (10, 1, H, W) uint8: the first samples, and the nearest image trained on.
    Raises     ValueError for a data set without a limit, or of which it leaves fewer images than it takes.
    """
    dataset = source.dataset if isinstance(source, Control) else source.run.dataset
    seen, others = _sets(dataset)
    images = source.images(wait)
    distances, indices = metrics.nearest(images, seen, k=2)
    unseen = np.stack([metrics.nearest(images, other)[0][:, 0] for other in others], axis=1)
    return Measured({
        "nearer_seen": metrics.nearer_seen(distances, unseen),
        "memorized": metrics.memorized(distances),
        "distance_ratio": metrics.distance_ratio(distances),
    }, {"pair_samples": images[:PAIRS].numpy(), "pair_train": seen[indices[:PAIRS, 0]].numpy()})


def _sets(dataset: str):
    """The images trained on, and the sets of others, drawn one after the other from one shuffled split."""
    whole, _, _ = dataset.partition("@")
    limit, size = data.parse(dataset).limit, data.train_size(whole)
    if not 0 < 2 * limit <= size:
        raise ValueError(f"copying needs a data set of few images, and as many others: say {whole}@N, with N from 1 to "
                         f"{size // 2}, not {dataset}")
    shuffled = data.load(whole, "train").draw(size).images  # as `load` draws them: the first ones are the limit's
    sets = shuffled.split(limit)
    return sets[0], sets[1 : 1 + min(OTHERS, size // limit - 1)]

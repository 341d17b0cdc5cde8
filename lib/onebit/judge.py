"""The judge: the published CNN classifier, whose features and confidence the evaluation uses."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .data import Dataset, normalize
from .train import device

FEATURES = 128
BATCH = 128


class Judge(nn.Module):
    """conv 32, conv 64, max-pool, fully connected 128, 10 classes.

    Shapes    images (B, 1, H, W), H = W = 28 or 16 -> logits (B, 10); features (B, 128), before their ReLU.
    Units     images in [-1, 1].
    Source    source 000, rigorous_bench_trainer.py 43-72: the features of its "FMD", the softmax of its "legibility".
    """

    def __init__(self, size: int = 28):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * ((size - 4) // 2) ** 2, FEATURES)
        self.fc2 = nn.Linear(FEATURES, 10)

    def features(self, images: Tensor) -> Tensor:
        """The 128 pre-ReLU outputs of the first fully connected layer."""
        return self.fc1(self.maps(images).flatten(1))

    def maps(self, images: Tensor) -> Tensor:
        """The 64 pooled feature maps, (B, 64, (H - 4) / 2, (W - 4) / 2)."""
        return F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(images)))), 2)

    def classify(self, features: Tensor) -> Tensor:
        """Logits from features."""
        return self.fc2(F.relu(features))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


def train_judge(dataset: Dataset, epochs: int, seed: int, progress: bool = True) -> Judge:
    """Train a judge on a whole training split: Adam 1e-3, batch 128, cross-entropy, as published (5 epochs there)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # no other is forked: torch.manual_seed reseeds CUDA's for good
        judge = Judge(dataset.images.shape[-1])
    place = device()
    judge.to(place, memory_format=torch.channels_last).train()
    images, labels = dataset.images.to(place), dataset.labels.to(place)
    optimizer = torch.optim.Adam(judge.parameters(), 1e-3, fused=True)
    order = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(epochs), "training the judge", disable=not progress):
        for batch in torch.randperm(len(images), generator=order).to(place).split(BATCH):
            loss = F.cross_entropy(judge(normalize(images[batch])), labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return judge.eval()


@torch.inference_mode()
def look(judge: Judge, images: Tensor, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Features and class probabilities of uint8 images.

    Shapes    images (N, 1, H, W) uint8 -> features (N, 128), probabilities (N, 10), float32 on the CPU.
    Raises    ValueError for images that are not uint8 or not of the judge's size.
    """
    _check(judge, images)
    place = next(judge.parameters()).device
    features = torch.cat([judge.features(normalize(part.to(place))) for part in images.split(batch)])
    return features.cpu(), judge.classify(features).softmax(dim=1).cpu()


@torch.inference_mode()
def look_spatially(judge: Judge, images: Tensor, batch: int = 500) -> Tensor:
    """The mean of the judge's feature maps at every place: features that know where, not what.

    Shapes    images (N, 1, H, W) uint8 -> (N, ((H - 4) / 2) ((W - 4) / 2)) float32 on the CPU.
    Raises    ValueError as `look`.
    Source    the idea of sFID (Nash et al. 2021, arXiv:2103.03841): intermediate, not pooled, features.
    """
    _check(judge, images)
    place = next(judge.parameters()).device
    return torch.cat([judge.maps(normalize(part.to(place))).mean(1).flatten(1) for part in images.split(batch)]).cpu()


def _check(judge: Judge, images: Tensor) -> None:
    size = int((judge.fc1.in_features // 64) ** 0.5) * 2 + 4
    if images.dtype != torch.uint8 or images.shape[1:] != (1, size, size):
        raise ValueError(f"need uint8 images (N, 1, {size}, {size}), got {images.dtype} {tuple(images.shape)}")


def accuracy(judge: Judge, dataset: Dataset) -> float:
    """Share of a split's images that the judge classifies correctly, 0..1."""
    _, probabilities = look(judge, dataset.images)
    return (probabilities.argmax(dim=1) == dataset.labels).double().mean().item()

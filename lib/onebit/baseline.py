"""The plain training loop that ours is timed against, written as a reader of the published script would write it."""

from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from .diffusion import TIMESTEPS
from .train import device


def reference_step(net: nn.Module, images: Tensor, batch: int) -> Callable[[], None]:
    """A plain training step in the manner of the published script: PIL images through a DataLoader, float32.

    Written out on its own, with nothing of ours but the network, so that it stays what a reader would have written.

    Source    source 000, rigorous_bench_trainer.py, without its autocast.
    """
    place = device()
    net.to(place).train()
    loader = DataLoader(_Pictures(images), batch_size=batch, shuffle=True, drop_last=True)  # as many images as ours
    batches = _endless(loader)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TIMESTEPS), dim=0).to(place)

    def step() -> None:
        x0 = next(batches)[0].to(place)
        noise = torch.randn_like(x0)
        timestep = torch.randint(0, TIMESTEPS, (len(x0),), device=place)
        kept = alpha_bar[timestep].view(-1, 1, 1, 1)
        loss = F.mse_loss(net(kept.sqrt() * x0 + (1 - kept).sqrt() * noise, timestep), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class _Pictures(Dataset):
    """(x0, label) like torchvision's MNIST: a PIL image is made of every item, then transformed."""

    def __init__(self, images: Tensor):
        self.images = images[:, 0]  # (N, H, W)
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i].numpy())), 0


def _endless(loader: DataLoader) -> Iterator:
    while True:
        yield from loader

"""Shared by all tests: one thread (bits depend on it), a home of its own for results, small images; order."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy's threads too, here and in child processes: they spin

import pytest
import torch

from onebit import paths

torch.set_num_threads(1)
LONGEST = "test_series.py"  # half of the whole time: the other workers take the other files meanwhile


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Results, figures and builds go to a temporary folder; downloaded data sets are out of reach."""
    for name, folder in {"DATA": "data", "RUNS": "data/runs", "RELEASED": "data/released", "FIGURES": "figures",
                         "BUILD": "build"}.items():
        monkeypatch.setattr(paths, name, tmp_path / folder)
    return tmp_path


@pytest.fixture
def images():
    """300 random uint8 images of 16 x 16 pixels."""
    return torch.randint(0, 256, (300, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def one_thread():
    """One thread and one seed, whatever the kernels' own threads have made of torch's number; put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)

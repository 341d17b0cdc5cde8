"""What the evaluation is timed against computes the same thing."""

import numpy as np
import pytest
import torch

from onebit import bench, nets
from onebit import bench_evaluation as rivals
from onebit.metrics import Gaussian, frechet_distance, nearest
from onebit.sampling import generators, sample

SMALL = rivals.Size(queries=12, references=60, features=6, width=4, images=2, steps=4)


def once(ours, theirs, seconds):
    """Both sides called once, as rates."""
    ours(), theirs()
    return 1.0, 2.0


def test_the_rival_search_finds_the_same_neighbours():
    rng = np.random.default_rng(0)
    references, queries = (rng.integers(0, 256, (n, 784), dtype=np.uint8) for n in (60, 12))
    distances, indices = nearest(queries, references)
    theirs, found = rivals.brute_force(references.astype(np.float64))(queries.astype(np.float64))
    assert np.array_equal(indices, found)
    np.testing.assert_allclose(distances, theirs / 255, rtol=1e-9)


def test_the_usual_frechet_distance_is_ours_to_one_in_a_million():
    rng = np.random.default_rng(0)
    a, b = (Gaussian.fit(rng.normal(size=(500, 32)) ** 2 + i) for i in range(2))
    assert frechet_distance(a, b) == pytest.approx(rivals.by_matrix_root(a, b), rel=1e-6)


def test_the_plain_sampler_draws_the_same_images(monkeypatch):
    torch.manual_seed(0)
    net = nets.build("unet", 4).eval()
    start = torch.stack([torch.randn(1, 28, 28, generator=g) for g in generators(0, range(2))])
    monkeypatch.setattr(torch, "randn", lambda *_, **__: start.clone())
    plain = rivals.plain_ddim(net, 2, 4)
    monkeypatch.undo()
    torch.testing.assert_close(sample(net, 2, shape=(1, 28, 28), sampler="ddim", steps=4), plain, atol=2e-4, rtol=0)


def test_every_pair_runs_and_counts_images():
    assert rivals.neighbour_rates(once, SMALL, rivals.brute_force, 0.0) == (12, 24)
    assert rivals.frechet_rates(once, SMALL, 0.0) == (1, 2)
    for precision in ("float32", "bfloat16"):
        assert rivals.sampling_rates(precision, once, SMALL, 0.0) == (2, 4)


def test_a_missing_rival_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(rivals.RivalMissing, match="pip install faiss-cpu"):
        rivals.flat_index(np.zeros((2, 3), dtype=np.float32))


def test_a_row_without_its_rival_is_left_as_it_is_and_is_no_failure(tmp_path, capsys):
    def measure(seconds):
        raise rivals.RivalMissing("x is not installed")

    path = tmp_path / "bench.csv"
    assert bench.record(bench.Bench("nn", "images/s", measure), 1.0, path) and not path.exists()
    assert "left as it is: nn (x is not installed)" in capsys.readouterr().err

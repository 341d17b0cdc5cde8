"""Batch-norm statistics as plain means over batches, by hand."""

import pytest
import torch
from torch import nn

from onebit.norms import reestimating


def batches(n=5):
    return [torch.randn(8, 3, generator=torch.Generator().manual_seed(i)) * (i + 1) + i for i in range(n)]


def network(**options):
    return nn.Sequential(nn.BatchNorm1d(3, **options), nn.Dropout(0.5), nn.Linear(3, 2)).eval()


def state(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_are_plain_means_of_those_of_each_batch(momentum):
    model = network(momentum=momentum)
    model.train()(torch.full((4, 3), 100.0))  # what training left is forgotten
    with torch.no_grad(), reestimating(model.eval()):
        assert model[1].training
        for x in batches():
            model(x)
    norm = model[0]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(0) for x in batches()]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var(0) for x in batches()]).mean(0))
    assert norm.momentum == momentum and not any(m.training for m in model.modules())


def test_a_pass_that_fails_leaves_everything_as_it_was():
    model = network()
    model[1].train()
    before = state(model)
    with pytest.raises(ZeroDivisionError), reestimating(model):
        model(batches()[0])
        raise ZeroDivisionError
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert [m.training for m in model] == [False, True, False] and model[0].momentum == 0.1


def test_no_pass_at_all_is_an_error_and_changes_nothing():
    model = network()
    model[0].running_mean.fill_(7)
    with pytest.raises(ValueError, match="no batch has reached a batch norm"), reestimating(model):
        pass
    assert model[0].running_mean.eq(7).all()


def test_a_batch_norm_that_no_pass_reaches_keeps_its_statistics():
    model = network()
    model.spare = nn.BatchNorm1d(3)
    model.spare.running_mean.fill_(7)
    with torch.no_grad(), reestimating(model):
        model[0](batches()[0])
    assert model.spare.running_mean.eq(7).all() and model.spare.momentum == 0.1


@pytest.mark.parametrize("model", [nn.Linear(3, 2), network(track_running_stats=False)])
def test_a_model_without_statistics_stays_as_it_is(model):
    before = state(model)
    with reestimating(model):
        pass
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())

"""A client's round: Eq. 5, the halves, the optimiser's memory, and small clients."""

import pytest
import torch

from fedser_utils.learning import local_training, vgg
from fedser_utils.learning.local_training import client_update, mixed_loss


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model():
    return vgg.build(3, width=1 / 32, generator=generator())


def clips(n):
    return torch.randn(n, 1, 64, 64, generator=generator(n)), torch.arange(n) % 3


def update(model, weights, x, y, **options):
    defaults = {"generator": generator(), "epochs": 1, "batch_size": 8, "learning_rate": 1e-3}
    return client_update(model, weights, x, y, **(defaults | options))


def weights_of(model):
    return {k: v.clone() for k, v in vgg.state_arrays(model).items()}


def test_equation_5_by_hand():
    original, adversarial = torch.tensor([1.0, 3.0]), torch.tensor([10.0])
    assert mixed_loss(original, adversarial, alpha=0.5) == 6
    assert mixed_loss(original, adversarial, alpha=0.75) == 4
    assert mixed_loss(original, adversarial[:0], alpha=0.1) == 2
    assert mixed_loss(original[:0], adversarial, alpha=0.9) == 10


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 17, 38])
def test_batches_hold_both_halves_and_every_clip_once(n):
    order = torch.randperm(n, generator=generator())
    attacked, original = order[: n // 2], order[n // 2 :]
    batches = list(local_training._batches(original, attacked, 8, generator()))
    assert len(batches) == -(-n // 8)
    assert sorted(torch.cat([i for pair in batches for i in pair]).tolist()) == list(range(n))
    for clean, adversarial in batches:
        assert 1 <= len(clean) + len(adversarial) <= 8
        assert abs(len(clean) - len(adversarial)) <= 2


@pytest.mark.parametrize("n", [1, 2, 9])
def test_small_and_odd_clients_train(model, n):
    x, y = clips(n)
    weights = weights_of(model)
    result = update(model, weights, x, y, attack=lambda m, x, y: x + 0.1)
    assert result.weights.keys() == weights.keys()
    assert all(torch.isfinite(v).all() for v in result.weights.values())
    assert not torch.equal(result.weights["classifier.2.bias"], weights["classifier.2.bias"])


def test_nothing_that_comes_in_is_changed(model):
    x, y = clips(10)
    weights = weights_of(model)
    first = update(model, weights, x, y)
    copies = {k: v.clone() for k, v in (weights | first.optimiser).items()}
    image = x.clone()
    update(model, weights, x, y, optimiser=first.optimiser, attack=lambda m, x, y: x + 1)
    assert torch.equal(x, image)
    assert all(torch.equal(v, copies[k]) for k, v in (weights | first.optimiser).items())


def test_same_generator_same_weights(model):
    x, y = clips(20)
    weights = weights_of(model)
    one, two = (update(model, weights, x, y).weights for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    other = update(model, weights, x, y, generator=generator(1)).weights
    assert not torch.equal(one["features.0.weight"], other["features.0.weight"])


def test_a_random_half_is_attacked_with_the_received_model(model):
    x, y = clips(11)
    weights = weights_of(model)
    calls = []

    def attack(received, clips, labels):
        assert not received.training
        vgg.load_arrays(model, weights)
        torch.testing.assert_close(received(clips), model.eval()(clips), rtol=1e-3, atol=1e-4)
        calls.append((clips, labels))
        return clips + 5

    update(model, weights, x, y, attack=attack, epochs=2)
    ((attacked, labels),) = calls  # once a round, whatever the number of epochs
    assert len(attacked) == 5
    which = [int((x == clip).flatten(1).all(1).nonzero()) for clip in attacked]
    assert len(set(which)) == 5
    assert torch.equal(y[which], labels)


def test_a_stored_optimiser_goes_on_where_it_stopped(model):
    """Two rounds of one batch with a stored state are two steps of one Adam."""
    x, y = clips(4)
    weights = weights_of(model)
    first = update(model, weights, x, y, generator=generator(1))
    resumed = update(model, first.weights, x, y, generator=generator(2), optimiser=first.optimiser)
    reset = update(model, first.weights, x, y, generator=generator(2))

    vgg.load_arrays(model, weights).train()
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(2):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
    expected = vgg.state_arrays(model)
    for name, value in expected.items():
        torch.testing.assert_close(resumed.weights[name], value, rtol=1e-3, atol=2e-5)
    apart = reset.weights["classifier.0.weight"] - expected["classifier.0.weight"]
    assert apart.abs().max() > 1e-4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_optimisers_memory_format_does_not_matter(model, layout):
    x, y = clips(9)
    first = update(model, weights_of(model), x, y)
    stored = {
        k: v.contiguous(memory_format=layout)
        if v.ndim == 4
        else v.reshape(-1)
        if v.ndim == 0
        else v
        for k, v in first.optimiser.items()
    }
    one = update(model, first.weights, x, y, optimiser=first.optimiser).weights
    two = update(model, first.weights, x, y, optimiser=stored).weights
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_it_learns():
    model = vgg.build(3, width=1 / 8, generator=generator())
    x, y = clips(24)
    x = x + y.view(-1, 1, 1, 1) * 2.0
    weights, state, losses = weights_of(model), None, []
    for _ in range(4):
        options = {"optimiser": state, "learning_rate": 3e-3, "epochs": 2}
        weights, state, loss, _ = update(model, weights, x, y, **options)
        losses.append(loss)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("mu", [0.0, 20.0])
def test_the_steps_are_torchs_adam_on_the_loss_and_fedproxs_term(mu):
    """Two epochs of one batch by hand: torch.optim.Adam on loss + mu/2 |w - w_global|^2,
    differentiated by torch. From the second step on the weights have moved away."""
    x, y = torch.randn(4, 1, 64, 32), torch.tensor([0, 1, 2, 0])
    model = vgg.build(3, width=1 / 32, generator=generator())
    weights = weights_of(model)
    result = update(
        model, weights, x, y, generator=generator(7), epochs=3, batch_size=4, proximal_mu=mu
    )
    by_hand = vgg.build(3, width=1 / 32, generator=generator()).train()
    optimiser = torch.optim.Adam(by_hand.parameters(), 1e-3)
    order = generator(7)
    first = torch.randperm(4, generator=order)
    for _ in range(3):
        batch = first[torch.randperm(4, generator=order)]
        loss = torch.nn.functional.cross_entropy(by_hand(x[batch]), y[batch])
        for name, parameter in by_hand.named_parameters():
            loss = loss + mu / 2 * (parameter - weights[name]).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for name, value in by_hand.named_parameters():
        torch.testing.assert_close(result.weights[name], value.detach(), rtol=1e-3, atol=2e-5)
    plain = update(model, weights, x, y, generator=generator(7), epochs=3, batch_size=4)
    moved = (plain.weights["classifier.2.weight"] - result.weights["classifier.2.weight"]).abs()
    assert (float(moved.max()) > 1e-4) == bool(mu)

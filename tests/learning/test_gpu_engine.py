"""The engine computes what ``local_training.client_update`` computes, however many lanes it has."""

import pytest
import torch

from fedser_utils.learning import gpu_engine, local_training, vgg
from fedser_utils.learning.gpu_engine import Engine, Job, Recipe

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand")
    ),
]
RECIPE = Recipe(alpha=0.5, proximal_mu=0.0, bf16=False)
RATE = {"learning_rate": 1e-3}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=DEVICES)
def model(request):
    torch.backends.cudnn.allow_tf32, before = False, torch.backends.cudnn.allow_tf32
    yield vgg.build(3, width=1 / 32, generator=generator()).to(request.param)
    torch.backends.cudnn.allow_tf32 = before


def job(model, n, *, attack=True, epochs=2, optimiser=None):
    """A client with n clips, of which the attacked are simply brighter; and the same round in
    ``client_update``'s words."""
    device = next(model.parameters()).device
    x = torch.randn(n, 1, 64, 64, generator=generator(n)).to(device)
    y = (torch.arange(n) % 3).to(device)
    given = {"epochs": epochs, "batch_size": 8}
    schedule = local_training.make_schedule(n, attack=attack, generator=generator(n), **given)
    moved = x.clone()
    moved[schedule.attacked.to(device)] += 0.5
    given |= {"attack": (lambda model, x, y: x + 0.5) if attack else None}
    given |= {"generator": generator(n), "optimiser": optimiser}
    return Job(moved, y, schedule, optimiser), (x, y, given)


def weights_of(model):
    return {k: v.clone() for k, v in vgg.state_arrays(model).items()}


def one_by_one(model, clips, **recipe):
    recipe = RECIPE._replace(**recipe)._asdict()
    weights = weights_of(model)
    return [
        local_training.client_update(vgg.build(3, width=1 / 32, generator=generator()).to(x.device),
                               weights, x, y, **given, **recipe, **RATE)
        for x, y, given in clips
    ]  # fmt: skip


def rounding(model, cpu):
    """What the same steps may differ by. On a GPU other algorithms round otherwise, and Adam's
    first step is as long for a gradient of 1e-9 as for one of 1."""
    return cpu if next(model.parameters()).device.type == "cpu" else 0.02


def close(one, other, tolerance):
    """Weights and optimiser's states agree within ``tolerance`` of each array's norm."""
    assert one.loss == pytest.approx(other.loss, rel=tolerance)
    for these, those in ((one.weights, other.weights), (one.optimiser, other.optimiser)):
        assert these.keys() == those.keys()
        for name, value in these.items():
            far = (value - those[name]).norm() / (those[name].norm() + 1e-6)
            assert far <= tolerance, (name, float(far))


@pytest.mark.parametrize("attack", [False, True])
@pytest.mark.parametrize("lanes", [1, 3])
def test_a_step_is_the_same(model, attack, lanes):
    """One step for each client: with more, rounding grows. One clip, fewer than a batch, a full
    batch; two rounds with stored optimisers on one engine."""
    jobs, clips = zip(*(job(model, n, attack=attack, epochs=1) for n in (1, 2, 5, 8)), strict=True)
    engine = Engine(model, RECIPE, clients=4, lanes=lanes)
    weights = weights_of(model)
    before = one_by_one(model, clips)
    for result, expected in zip(engine.fit(jobs, weights, **RATE), before, strict=True):
        close(result, expected, rounding(model, 1e-4))
    states = [b.optimiser for b in before]
    jobs, clips = zip(
        *(job(model, n, attack=attack, epochs=1, optimiser=o)
          for n, o in zip((1, 2, 5, 8), states, strict=True)), strict=True,
    )  # fmt: skip
    for result, expected in zip(
        engine.fit(jobs, weights, **RATE), one_by_one(model, clips), strict=True
    ):
        close(result, expected, rounding(model, 1e-4))


@pytest.mark.parametrize(("bf16", "unit"), [(False, 1e-4), (True, 2**-8)], ids=["fp32", "bf16"])
def test_the_gradient_of_a_step_is_the_same(model, bf16, unit):
    """After one step from nothing Adam's first moment is a tenth of the gradient. unit: of bf16
    its unit roundoff; of fp32 what TF32 and other algorithms may make of it."""
    mine, clips = job(model, 7, epochs=1)
    recipe = RECIPE._replace(bf16=bf16)
    (result,) = Engine(model, recipe, clients=1).fit([mine], weights_of(model), **RATE)
    (expected,) = one_by_one(model, [clips], bf16=bf16)
    moments = [name for name in expected.optimiser if name.startswith("exp_avg/")]
    assert len(moments) == len(list(model.parameters()))
    for name in moments:
        gradient = expected.optimiser[name]
        assert (result.optimiser[name] - gradient).norm() <= unit * gradient.norm()


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_the_number_of_lanes_changes_nothing(model, lanes):
    """Clients of all sizes, odd last batches, two epochs."""
    jobs = [job(model, n)[0] for n in (1, 3, 9, 17, 30)]
    weights = weights_of(model)
    result = Engine(model, RECIPE, clients=5, lanes=lanes).fit(jobs, weights, **RATE)
    expected = Engine(model, RECIPE, clients=5, lanes=1).fit(jobs, weights, **RATE)
    for one, other in zip(result, expected, strict=True):
        close(one, other, rounding(model, 1e-6))


def test_the_proximal_term_pulls_to_the_rounds_weights(model):
    mine, clips = job(model, 12)
    engine = Engine(model, RECIPE._replace(proximal_mu=10.0), clients=1)
    (result,) = engine.fit([mine], weights_of(model), **RATE)
    close(result, one_by_one(model, [clips], proximal_mu=10.0)[0], rounding(model, 1e-3))


def test_nothing_that_comes_in_is_changed(model):
    mine, _ = job(model, 9)
    weights = weights_of(model)
    engine = Engine(model, RECIPE, clients=1)
    (first,) = engine.fit([mine], weights, **RATE)
    again = mine._replace(optimiser=first.optimiser)
    copies = {k: v.clone() for k, v in (weights | first.optimiser | first.weights).items()}
    clips = mine.x.clone()
    engine.fit([again], weights, **RATE)
    assert torch.equal(mine.x, clips)
    now = weights | first.optimiser | first.weights
    assert all(torch.equal(now[k], v) for k, v in copies.items())


def test_out_of_memory_costs_lanes_and_is_said(model, monkeypatch, caplog):
    jobs = [job(model, n)[0] for n in (9, 4, 6)]
    expected = Engine(model, RECIPE, clients=3, lanes=1).fit(jobs, weights_of(model), **RATE)
    engine = Engine(model, RECIPE, clients=3, lanes=4)
    step = gpu_engine.Lane.step

    def too_much(lane, *arguments):
        if len(engine.lanes) > 1 and lane is engine.lanes[1]:
            raise torch.OutOfMemoryError("planted")
        step(lane, *arguments)

    monkeypatch.setattr(gpu_engine.Lane, "step", too_much)
    result = engine.fit(jobs, weights_of(model), **RATE)
    assert len(engine.lanes) == 1
    assert "going on with 1 clients side by side" in caplog.text
    for one, other in zip(result, expected, strict=True):
        close(one, other, rounding(model, 1e-6))
    monkeypatch.setattr(
        gpu_engine.Lane, "step", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError)
    )
    with pytest.raises(torch.OutOfMemoryError):
        engine.fit(jobs, weights_of(model), **RATE)


GB = 1e9


@pytest.mark.parametrize(
    ("free", "lanes", "on_host"),
    [
        (79 * GB, 4, False),
        (39 * GB, 4, False),
        (23 * GB, 4, True),
        (13.3 * GB, 2, True),
        (1, 1, True),
    ],
)
def test_lanes_and_states_follow_the_memory(free, lanes, on_host):
    """68 clients of the full model, 59 MB."""
    assert gpu_engine.plan_lanes(free, size=0.0594 * GB, clients=68, most=4) == (lanes, on_host)


def test_work_is_shared_out_evenly():
    assert gpu_engine.balance_loads([1, 5, 3, 3], 2) == [[1, 0], [2, 3]]
    assert gpu_engine.balance_loads([2], 3) == [[0], [], []]
    shares = gpu_engine.balance_loads(list(range(68)), 4)
    assert sorted(number for share in shares for number in share) == list(range(68))

import pytest
import torch

from fedser_utils import models
from fedser_utils.models import VGG15


def test_the_papers_size():
    model = VGG15()
    assert sum(p.numel() for p in model.parameters()) == 14_850_887
    assert sum(isinstance(m, torch.nn.Conv2d) for m in model.modules()) == 13


@pytest.mark.parametrize("shape", [(373, 64), (380, 66), (32, 32)])
def test_logits_of_any_size(shape):
    assert VGG15(5, width=1 / 32).eval()(torch.randn(2, 1, *shape)).shape == (2, 5)


def test_weights_depend_on_the_generator_alone():
    def build(seed):
        return models.build(7, width=1 / 32, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    one, two, other = build(0), build(0), build(1)
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(2, 1, 64, 64)
    assert torch.equal(one.eval()(x), two.eval()(x))
    assert not torch.equal(one(x), other.eval()(x))


def test_folding_changes_no_logit_and_not_the_model():
    model = VGG15(width=1 / 16)
    model(torch.randn(16, 1, 64, 64))  # batch-norm statistics that are not the initial ones
    state = {k: v.clone() for k, v in model.state_dict().items()}
    frozen = models.folded(model)
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in frozen.modules())
    x = torch.randn(4, 1, 373, 64)
    torch.testing.assert_close(frozen(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_arrays_go_and_come_back():
    one, two = VGG15(width=1 / 32), VGG15(width=1 / 32)
    one(torch.randn(8, 1, 64, 64))
    arrays = models.state_arrays(one)
    assert "features.1.running_var" in arrays
    models.load_arrays(two, arrays)
    x = torch.randn(2, 1, 64, 64)
    assert torch.equal(one.eval()(x), two.eval()(x))
    with pytest.raises(RuntimeError, match=r"features\.0\.weight"):
        models.load_arrays(two, {k: v for k, v in arrays.items() if k != "features.0.weight"})

import pytest
import torch
from torch.nn import functional

from fedser_utils.robustness.randomisation import Draw, Randomise, RandomisedModel


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_equals_interpolate_and_pad(mode):
    randomise = Randomise(mode=mode)
    x = torch.randn(40, 1, 373, 64)
    draw = randomise.draw(40, generator())
    ours = randomise(x, draw)
    assert ours.shape == (40, 1, 380, 66)
    for image, drawn, (h, w), (top, left) in zip(x, ours, *(d.tolist() for d in draw), strict=True):
        align = {"align_corners": False} if mode == "bilinear" else {}
        # the reference in double: in single precision its own positions are off by up to 1e-4
        resized = functional.interpolate(image[None].double(), size=(h, w), mode=mode, **align)
        padding = (left, 66 - w - left, top, 380 - h - top)
        expected = functional.pad(resized, padding, value=0.5)[0]
        torch.testing.assert_close(drawn.double(), expected, rtol=1e-5, atol=1e-5)


def test_draws_cover_the_papers_ranges():
    draw = Randomise().draw(4000, generator())
    size, offset = draw
    assert set(size[:, 0].tolist()) == set(range(373, 380))
    assert set(size[:, 1].tolist()) == {64, 65}
    assert (offset >= 0).all()
    assert (offset + size <= torch.tensor([380, 66])).all()
    room = 380 - size[:, 0] == 7
    assert set(offset[room, 0].tolist()) == set(range(8))


def test_each_clip_has_its_own_draw():
    randomise = Randomise()
    same = torch.randn(1, 1, 373, 64).repeat(8, 1, 1, 1)
    out = randomise(same, randomise.draw(8, generator()))
    assert len({image.sum().item() for image in out}) > 4


def test_gradients_pass():
    for mode in ("bilinear", "nearest"):
        x = torch.randn(2, 1, 373, 64, requires_grad=True)
        randomise = Randomise(mode=mode)
        randomise(x, randomise.draw(2, generator())).sum().backward()
        assert (x.grad != 0).float().mean() > 0.95


def test_the_model_sees_a_new_draw_each_time():
    seen = []
    model = RandomisedModel(lambda x: seen.append(x) or x.mean((2, 3)), Randomise(), generator())
    x = torch.randn(3, 1, 373, 64)
    model(x), model(x)
    assert seen[0].shape == (3, 1, 380, 66)
    assert not torch.equal(*seen)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        Randomise(frames=(373, 400))
    with pytest.raises(ValueError, match="resize 'cubic' is unknown; choose from bilinear"):
        Randomise(mode="cubic")


def test_the_papers_margins_on_another_shape():
    paper, same = Randomise(), Randomise.on((373, 64))
    assert (same.ranges, same.padded, same.value) == (paper.ranges, paper.padded, paper.value)
    machines = Randomise.on((311, 128), mode="nearest")
    assert machines.ranges == ((311, 318), (128, 130))
    assert machines.padded == (318, 130)
    assert machines.mode == "nearest"
    x = torch.randn(3, 1, 311, 128)
    drawn = machines(x, machines.draw(3, generator()))
    assert drawn.shape == (3, 1, 318, 130)
    with pytest.raises(ValueError, match=r"images \(311, 128\) do not fit sizes"):
        Randomise()(x, Randomise().draw(3, generator()))


def test_no_padding_and_no_resizing_is_the_identity():
    randomise = Randomise(frames=(373, 374), mels=(64, 65), padded=(373, 64))
    x = torch.randn(2, 1, 373, 64)
    zeros = torch.zeros(2, 2, dtype=torch.long)
    same = torch.tensor([[373, 64]] * 2)
    torch.testing.assert_close(randomise(x, Draw(same, zeros)), x)

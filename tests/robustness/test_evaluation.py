"""What attacks do to models, as tidy rows."""

from functools import partial

import pandas as pd
import pytest
import soundfile
import torch

from fedser_utils import attacks
from fedser_utils.analysis import metrics
from fedser_utils.core.seeding import generator
from fedser_utils.data import log_mel
from fedser_utils.learning import vgg
from fedser_utils.robustness import evaluation


@pytest.fixture(scope="module")
def pair(trained):
    """Two models that differ, and clips."""
    model, x, y = trained
    other = vgg.load_arrays(vgg.VGG15(7, width=1 / 16), vgg.state_arrays(model)).eval()
    other.classifier[2].bias.data += torch.arange(7) / 4
    return {"nature": model, "pgd": other}, x[:20], y[:20]


def test_batches_are_joined_in_order_and_draw_their_own():
    x = torch.arange(100.0)

    def noisy(part, generator):
        return part + torch.rand(len(part), generator=generator)

    def own(number):
        return generator(0, number)

    one, other = (evaluation.in_batches(noisy, x, generators=own) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(one.floor(), x)
    assert len((one - x).unique()) > 90


def test_rows_under_attacks(pair):
    study, x, y = pair
    pgd = partial(attacks.pgd, epsilon=0.05, step_size=0.02, steps=3)
    tried = {("none", None): None, ("pgd", 0.05): pgd}
    rows = evaluation.under_attacks(study["nature"], x, y, tried, targets=study)
    assert len(rows) == 2 * 2 * 20
    plain = rows[(rows["target"] == "nature") & (rows["attack"] == "none")]
    assert plain["y_pred"].tolist() == attacks.predictions(study["nature"], x).tolist()
    found = metrics.uar_by(rows[rows["target"] == "nature"], ["attack", "value"])
    assert found["uar"].iloc[1] < found["uar"].iloc[0]
    assert found["n"].tolist() == [20, 20]


def test_random_starts_are_the_same_every_time(pair):
    study, x, y = pair
    attack = partial(attacks.pgd, epsilon=0.02, step_size=0.02, steps=1, random_start=True)
    one, other, third = (
        evaluation.under_attacks(study["nature"], x, y, {("pgd", 1): attack}, seed=seed)
        for seed in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(one, other)
    assert one.shape == third.shape


def test_transfer_is_a_matrix(pair):
    study, x, y = pair
    fgsm = partial(attacks.fgsm, epsilon=0.05)
    rows = evaluation.transfer(study, x, y, fgsm)
    found = metrics.uar_by(rows, ["source", "target"])
    assert len(found) == 4
    assert found["n"].eq(20).all()


def test_fooled_by_hand():
    model = vgg.WeakModel(3, size=2, generator=generator(0, "planted"))
    x = torch.randn(4, 1, 1, 2)
    before = attacks.predictions(model, x)

    def half(model, x, y):
        flipped = x.clone()
        for i in (0, 1):
            while attacks.predictions(model, flipped[i : i + 1]) == before[i]:
                flipped[i] = torch.randn_like(x[i])
        return flipped

    shares = evaluation.fooling_rate(model, x, {"half": half, "none": lambda model, x, y: x})
    assert shares.to_dict() == {"half": 50, "none": 0}


def test_sizes(pair):
    study, x, y = pair
    fgsm = partial(attacks.fgsm, epsilon=0.05)
    std = torch.full((64,), 2.0)
    found = evaluation.perturbation_sizes(
        study["nature"], x, y, {"fgsm": fgsm}, mean=torch.zeros(64), std=std
    )
    assert found["attack"].tolist() == ["fgsm"]
    assert found["linf"].item() == pytest.approx(0.05, abs=1e-5)
    assert found["linf_db"].item() == pytest.approx(0.1 * 8.685889638, rel=1e-3)


def test_what_is_heard_is_what_was_written(trained, speakers4, tmp_path):
    first = speakers4.clips.index[0]
    listen, sound = speakers4.input_transform(first), speakers4.waveform(first)
    sounds = {"as it was": sound, "louder, 2 dB": 0.9 * sound / sound.abs().max()}
    heard = evaluation.predict_sounds(trained[0], listen, sounds, tmp_path / "new")
    assert [path.name for path in heard["path"]] == ["as-it-was.wav", "louder-2-dB.wav"]
    for name, path, y_pred in heard.itertuples(index=False):
        written, rate = soundfile.read(path, dtype="float32")
        assert rate == 16_000
        torch.testing.assert_close(torch.from_numpy(written), sounds[name][0], rtol=0, atol=1e-4)
        image = listen(log_mel.load_waveform(path))
        assert attacks.predictions(trained[0], image).item() == y_pred


def test_rows_of_draws_and_their_names():
    clips = pd.DataFrame({"clip": ["c", "d"], "speaker": ["s", "t"], "emotion": ["fear", "joy"]})
    rows = evaluation.draw_rows(torch.tensor([[0, 1], [1, 1], [0, 0]]), attack="pgd")
    rows = evaluation.with_clips(rows, clips, ("fear", "joy"), run="r")
    assert rows["draw"].tolist() == [0, 0, 1, 1, 2, 2]
    assert rows["clip"].tolist() == ["c", "d"] * 3
    assert rows["y_true"].tolist() == ["fear", "joy"] * 3
    assert rows["y_pred"].tolist() == ["fear", "joy", "joy", "joy", "fear", "fear"]
    assert set(rows["attack"] + rows["run"]) == {"pgdr"}
    assert len(evaluation.draw_rows(torch.tensor([1, 0]))) == 2

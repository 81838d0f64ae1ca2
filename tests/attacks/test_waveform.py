"""Attacks on the sound itself, on a trained model; how loud a perturbation is, by hand."""

import math

import numpy as np
import pytest
import torch

from fedser_utils import attacks
from fedser_utils.core.front_end import MACHINES
from fedser_utils.core.seeding import generator
from fedser_utils.data import audio, log_mel
from fedser_utils.learning import vgg


@pytest.fixture(scope="module")
def recognised(trained, speakers4):
    """(model, features, clips): up to 12 sounds that the model recognises, with their labels."""
    model, listen = (
        vgg.fold_batch_norm(trained[0]),
        log_mel.StandardisedLogMel(speakers4.mean, speakers4.std),
    )
    clips = []
    for path, y in zip(speakers4.clips["path"], trained[2], strict=True):
        sound = torch.from_numpy(audio.read(speakers4.corpus.root / path).waveform)[None]
        if attacks.predictions(model, listen(sound)) == y:
            clips.append((sound, y[None]))
    return model, listen, clips[:12]


def test_features_from_sound_equal_the_cached_ones(trained, speakers4):
    path = speakers4.corpus.root / speakers4.clips["path"].iloc[0]
    sound = torch.from_numpy(audio.read(path).waveform)[None]
    listen = log_mel.StandardisedLogMel(speakers4.mean, speakers4.std)
    torch.testing.assert_close(listen(sound), trained[1][:1], rtol=1e-4, atol=1e-4)


def test_a_wav_still_fools_after_16_bits(recognised, tmp_path):
    model, listen, clips = recognised
    before, after = 0, 0
    for sound, y in clips:
        x_adv = attacks.waveform_pgd(model, sound, y, features=listen, snr_db=35, steps=5)
        assert attacks.snr_db(sound, x_adv).item() >= 35 - 1e-3
        assert x_adv.abs().max() <= 1
        audio.write(tmp_path / "adversarial.wav", x_adv[0].numpy())
        back = torch.from_numpy(audio.read(tmp_path / "adversarial.wav").waveform)[None]
        assert back.shape == sound.shape
        assert (back - x_adv).abs().max() <= 1.01 / 2**15
        before += int((attacks.predictions(model, listen(x_adv)) != y).sum())
        after += int((attacks.predictions(model, listen(back)) != y).sum())
    print(f"fooled {before} before and {after} after 16 bits, of {len(clips)}")
    assert len(clips) == 12
    assert before >= 11
    assert after >= 11


def test_through_another_front_end():
    """A model of tones' loudness by band, 311 x 128: the sound that fools it keeps its ratio."""
    listen = log_mel.StandardisedLogMel(
        np.zeros(128, np.float32), np.ones(128, np.float32), MACHINES, level="rms"
    )
    weak = vgg.WeakModel(3, size=311 * 128, generator=generator(0, "planted"))
    sound = 0.1 * torch.randn(1, 20_000, generator=generator(0, "sound"))
    y = attacks.predictions(weak, listen(sound))
    x_adv = attacks.waveform_pgd(weak, sound, y, features=listen, snr_db=40, steps=5)
    assert x_adv.shape == sound.shape
    assert attacks.snr_db(sound, x_adv).item() >= 40 - 1e-3
    assert attacks.predictions(weak, listen(x_adv)) != y


def test_a_tight_budget_spares_more(recognised):
    model, listen, clips = recognised

    def fooled(snr_db):
        return sum(
            int(
                attacks.predictions(
                    model,
                    listen(
                        attacks.waveform_pgd(
                            model, sound, y, features=listen, snr_db=snr_db, steps=3
                        )
                    ),
                )
                != y
            )
            for sound, y in clips
        )

    assert fooled(90) < fooled(40)


def test_what_cannot_be_attacked_is_refused(recognised):
    model, listen, _ = recognised
    options = {"features": listen, "snr_db": 30, "steps": 1}
    with pytest.raises(ValueError, match="silent"):
        attacks.waveform_pgd(model, torch.zeros(1, 8000), **options)
    with pytest.raises(ValueError, match="reaches 2; it must be in"):
        attacks.waveform_pgd(model, torch.full((1, 8000), 2.0), **options)
    with pytest.raises(ValueError, match="training mode"):
        attacks.waveform_pgd(vgg.VGG15(3, width=1 / 64), torch.ones(1, 8000), **options)


def test_an_approximate_sound_sounds_alike(speakers4):
    images = torch.from_numpy(speakers4.log_mels[:3].copy())[:, None]
    sounds = log_mel.approximate_sound(images)
    assert sounds.abs().max() <= 1
    again = log_mel.LogMel()(sounds)
    for image, other in zip(images, again, strict=True):
        assert torch.corrcoef(torch.stack([image.flatten(), other.flatten()]))[0, 1] > 0.85


def test_snr_by_hand():
    clean = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    noisy = torch.tensor([[3.3, 4.4], [1.0, 0.0]])
    torch.testing.assert_close(attacks.snr_db(clean, noisy), torch.tensor([20.0, math.inf]))


def test_perceptibility_by_hand():
    # two bands of magnitude 1 and 10; the first is doubled (6.02 dB), the second stays
    mean, std = torch.tensor([0.0, math.log(10)]), torch.tensor([2.0, 1.0])
    x = torch.zeros(1, 1, 1, 2)
    x_adv = x + torch.tensor([math.log(2) / 2, 0.0])
    sizes = attacks.perceptibility(x, x_adv, mean=mean, std=std)
    assert sizes["l2"].item() == pytest.approx(math.log(2) / 2, rel=1e-5)
    assert sizes["linf"].item() == pytest.approx(math.log(2) / 2, rel=1e-5)
    assert sizes["linf_db"].item() == pytest.approx(6.0206, rel=1e-4)
    assert sizes["snr_db"].item() == pytest.approx(10 * math.log10(101), rel=1e-4)

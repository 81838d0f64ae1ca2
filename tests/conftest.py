"""What several tests share: a tiny federation, a trained model, real speech where it is at hand.

Tests compute on one torch thread and, where they do not say otherwise, in fp32: what a processor
offers (bf16, more cores) must not decide whether they pass. No test may depend on how fast the
machine is: wait for what must happen, not for a time.
"""

import fcntl
import gc
import os
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from fedser_utils.core.presets import load_settings
from fedser_utils.core.seeding import generator
from fedser_utils.core.settings import ROOT
from fedser_utils.data.federation import load_federation
from fedser_utils.learning import local_training, vgg
from fedser_utils.robustness.defended_model import DefendedModel
from fedser_utils.robustness.randomisation import Randomise

SHARED = Path(os.environ.get("FEDSER_SHARED", ROOT.parent / "shared")) / "data"


LONGEST = (
    "test_notebooks",
    "test_lab",
    "test_attacks_against_art",
    "test_remote",
    "test_server_app",
    "test_batch_norm",
    "test_checklist",
    "test_attacks",
)

torch.set_num_threads(1)
gc.freeze()  # what is imported stays: statsmodels collects garbage at every correction of p


def pytest_collection_modifyitems(items):
    """The files that take longest first, so that workers side by side end together."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def speech():
    """The folder of real corpora beside the project: ``emovo``, ``ravdess``, DEMoS's names."""
    if not SHARED.is_dir():
        pytest.skip(f"real speech is not at hand: no {SHARED.name} folder; set FEDSER_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def speech_like():
    """A function that writes corpora of given levels, two speakers and two classes each, into
    ``root``, and gives them as a setting."""

    def write(root, *, seconds=0.5, per_class=4, **levels):
        for seed, (corpus, level) in enumerate(levels.items()):
            draws = np.random.default_rng(seed)
            time = np.arange(int(16_000 * seconds)) / 16_000
            for speaker, label, take in product("ab", ("anger", "joy"), range(per_class)):
                tone = np.sin(2 * np.pi * (300 if label == "joy" else 1200) * time)
                path = root / corpus / speaker / label / f"{take}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = draws.normal(0, 0.3, len(time))
                soundfile.write(path, level * (tone + noise) / 2, 16_000)
            table = [
                {
                    "path": str(p.relative_to(root / corpus)),
                    "speaker": p.parts[-3],
                    "label": p.parts[-2],
                }
                for p in sorted((root / corpus).rglob("*.wav"))
            ]
            pd.DataFrame(table).to_csv(root / corpus / "manifest.csv", index=False)
        return ",".join(str(root / corpus) for corpus in levels)

    return write


@pytest.fixture(scope="session")
def common(tmp_path_factory, worker_id):
    """A folder that all of this session's workers share."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


def once(path, make):
    """``path``, made by whichever worker needs it first; the others wait."""
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(path.with_name(f".{path.name}"))
            path.with_name(f".{path.name}").rename(path)
    return path


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="session")
def tiny(outputs):
    """Settings of seconds: 3 speakers, 63 clips of a second, a VGG-15 of 1 to 16 channels."""
    return load_settings(
        "smoke",
        outputs=str(outputs),
        width=1 / 32,
        rounds=2,
        eval_every=1,
        seconds=1.0,
        device="cpu",
    )


@pytest.fixture(scope="session")
def federation(tiny):
    return load_federation(tiny)


@pytest.fixture(scope="session")
def speakers4(outputs):
    """A federation of 4 speakers and 140 clips."""
    return load_federation(load_settings("smoke", outputs=str(outputs), speakers=4, clips=140))


@pytest.fixture(scope="session")
def trained(speakers4, common):
    """(model, x, y): a VGG-15 of 4 to 32 channels that recognises most of the 140 clips."""
    model = vgg.build(len(speakers4.classes), width=1 / 16, generator=generator(0, "init"))
    x, y = speakers4.tensors(speakers4.clips)

    def train(path):
        weights = {name: value.clone() for name, value in vgg.state_arrays(model).items()}
        update = local_training.client_update(
            model, weights, x[:, :, :186].contiguous(), y,  # the first 3 s suffice
            generator=generator(0, "trained"), epochs=20, batch_size=8, learning_rate=1e-3,
        )  # fmt: skip
        save_file({name: v.contiguous() for name, v in update.weights.items()}, path)

    path = once(common / "trained.safetensors", train)
    return vgg.load_arrays(model, load_file(path)).eval(), x, y


@pytest.fixture(scope="session")
def defended(trained, speakers4):
    """The trained model behind the randomisation, with 14 clips and 4 draws."""
    model, x, y = trained
    plain, clips = vgg.fold_batch_norm(model), speakers4.clips.iloc[:14]
    return DefendedModel(
        plain=plain, target_model=plain, clips=clips, x=x[:14], y=y[:14], classes=speakers4.classes,
        mean=torch.zeros(64), std=torch.ones(64), facts={"run": "r", "model": "nature", "round": 1},
        randomise=Randomise(), draws=4, seed=0,
    )  # fmt: skip

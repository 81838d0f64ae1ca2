"""Opening a finished run, and the key under which a study's evidence is cached."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedser_utils import robustness
from fedser_utils.core import runs
from fedser_utils.core.errors import InputError
from fedser_utils.core.seeding import generator
from fedser_utils.learning import vgg
from fedser_utils.robustness import adaptive_study, checklist

PAGE = {
    "test_clips": 7, "draws": 4, "eot": [1, 2], "gradients": 2, "attack_steps": 3,
    "epsilons": [0.05, 1.0], "iterations": [1, 2], "restarts": 5, "few": 2, "queries": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny, federation, tmp_path_factory):
    """Settings of a study with three complete runs, their models untrained: nature and pgd of the
    settings' seed, nature of another."""
    outputs = str(tmp_path_factory.mktemp("finished"))
    given = replace(tiny, outputs=outputs)
    for changes in ({}, {"attack": "pgd"}, {"seed": 1}):
        settings = replace(given, **changes)
        run = runs.open_run(settings, federation.corpus.fingerprint, device="cpu", bf16=False)
        draws = generator(settings.seed, "init", settings.model)
        model = vgg.build(len(federation.classes), width=settings.width, generator=draws)
        runs.save_model(run, {n: v.numpy() for n, v in vgg.state_arrays(model).items()})
    return given


def test_a_run_is_opened_with_its_model_and_test_clips(finished, federation):
    loaded = robustness.load_model(finished)
    assert loaded.run.config["model"] == "nature"
    assert not loaded.model.training
    x, y = federation.tensors(federation.table("test"))
    assert torch.equal(loaded.x, x)
    assert torch.equal(loaded.y, y)
    with torch.no_grad():
        torch.testing.assert_close(loaded.target_model(x), loaded.model(x), rtol=1e-3, atol=1e-4)
    assert loaded.caption.startswith(f"nature: n = {len(x)} test clips of synthetic, 2 rounds")
    assert [*loaded.columns] == ["run", "processor", "precision"]


def test_a_study_is_all_models_of_one_seed(finished):
    models = robustness.load_study(finished)
    assert [loaded.run.config["model"] for loaded in models] == ["nature", "pgd"]
    assert models[0].x is models[1].x


def test_what_is_not_there_is_refused_in_one_line(finished):
    for changes, words in (
        ({"outputs": finished.outputs + "/none"}, "has no complete run in"),
        ({"attack": "fgsm"}, "has no complete run of model 'fgsm'"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            robustness.load_model(replace(finished, **changes))
        assert "\n" not in str(refused.value)


def test_the_key_of_cached_evidence_stays(finished):
    """Evidence of earlier versions is recognised by exactly this key."""
    study = robustness.open_adaptive_study(finished, SimpleNamespace(**PAGE, sigma=0.25))
    assert adaptive_study._key(study) == {
        "eot": [1, 2], "gradients": 2, "steps": 3, "epsilons": [0.05, 1.0],
        "epsilon": finished.epsilon, "clips": 7, "draws": 4,
    }  # fmt: skip
    assert [loaded.run.config["model"] for loaded in study.models] == ["nature", "pgd"]
    assert (len(study.runs), len(study.test)) == (3, 7)


def test_every_item_of_the_checklist_says_what_passes():
    for item in checklist.ITEMS:
        assert "Passes " in item.check.__doc__, item.name

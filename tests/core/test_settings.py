from dataclasses import fields

import pytest

from fedser_utils.core.errors import InputError
from fedser_utils.core.presets import load_settings, preset_names, settings_page
from fedser_utils.core.settings import ROOT, Settings


def test_presets_load():
    assert preset_names() == ["demo", "deployment", "paper", "smoke"]
    assert load_settings().preset == "demo"
    paper = load_settings("paper")
    assert (paper.rounds, paper.batch_size, paper.epsilon, paper.steps) == (300, 8, 0.05, 5)
    assert (paper.speakers, paper.clips, paper.width, paper.alpha) == (68, 9365, 1.0, 0.5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"preset": "dmeo"},
            "preset 'dmeo' is unknown; choose from demo, deployment, paper, smoke",
        ),
        ({"atack": "pgd"}, "parameter 'atack' is unknown; did you mean attack? all are"),
        ({"attack": "pdg"}, "attack 'pdg' is unknown; choose from none, fgsm, pgd, deepfool"),
        ({"rounds": -3}, "rounds -3 must be a whole number >= 1"),
        ({"rounds": 2.5}, "rounds 2.5 must be a whole number"),
        ({"rounds": True}, "rounds True must be"),
        ({"rounds": "3"}, "rounds '3' must be"),
        ({"epsilon": 0}, "epsilon 0 must be a number > 0"),
        ({"epsilon": float("nan")}, "epsilon nan must be"),
        ({"epsilon": float("inf")}, "epsilon inf must be"),
        ({"alpha": 1.5}, "alpha 1.5 must be a number >= 0 and <= 1"),
        ({"speakers": 69}, "speakers 69 must be a whole number >= 2 and <= 68"),
        (
            {"corpus": "/nowhere"},
            "corpus '/nowhere' does not exist; give 'synthetic', 'machines', a folder",
        ),
        ({"split": "by_mood"}, "split 'by_mood' is unknown"),
    ],
)
def test_bad_input_is_refused_in_one_line(given, words):
    with pytest.raises(InputError) as refusal:
        load_settings(**given)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_none_means_as_the_preset_says():
    assert load_settings("smoke", rounds=None) == load_settings("smoke")


def test_a_study_is_a_corpus_and_a_preset(tmp_path):
    assert load_settings("demo").study == "demo"
    folder = tmp_path / "emovo"
    folder.mkdir()
    assert load_settings("demo", corpus=str(folder)).study == "demo-emovo"


def test_docs_list_every_setting_as_it_is_declared():
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page(), "run: make docs"
    assert all(spec.metadata["help"] for spec in fields(Settings))


def test_a_pooled_model_has_its_own_name():
    pooled = load_settings("demo", clients="pooled")
    assert pooled.model == "centralised"
    assert load_settings("demo", clients="pooled", attack="pgd").model == "centralised-pgd"

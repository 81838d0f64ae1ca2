"""The trainings that notebook 07 asks for: which settings, and what is refused before any."""

from types import SimpleNamespace

import pandas as pd
import pytest

from fedser_utils.core.errors import InputError
from fedser_utils.core.presets import load_settings
from fedser_utils.core.runs import Run
from fedser_utils.federated import heterogeneity_study


@pytest.fixture
def trained(monkeypatch):
    """The settings of every training, none of which is done."""
    settings, test = [], pd.DataFrame({"clip": [*"pq"]})
    data = SimpleNamespace(
        clients=[*"abc"], table=lambda part: test, corpus=SimpleNamespace(fingerprint="f")
    )

    def train(given):
        settings.append(given)
        return Run(given.folder, {"commit": "abc", "device": "A CPU", "bf16": False})

    monkeypatch.setattr(heterogeneity_study, "load_federation", lambda given: data)
    monkeypatch.setattr(heterogeneity_study, "train", train)
    return settings


def opened(tmp_path, **changed):
    settings = load_settings("smoke", outputs=str(tmp_path), seed=3, rounds=4)
    options = {"interventions": ["group norm"], "defence": "pgd", "seeds": 2}
    return heterogeneity_study.open_heterogeneity_study(settings, **options | changed)


def test_every_intervention_is_trained_with_every_seed(trained, tmp_path):
    before = opened(tmp_path)
    study = heterogeneity_study.train_interventions(before)
    assert [(s.norm, s.seed) for s in trained] == [
        ("batch", 3), ("batch", 4), ("group", 3), ("group", 4)
    ]  # fmt: skip
    assert {(s.eval_every, s.attack_every) for s in trained} == {(1, 4)}
    assert list(study.runs) == ["as given", "group norm"]
    assert study.baseline is study.runs["as given"][0]
    assert before.runs == {}
    assert study.caption == (
        "Study smoke: 3 clients, n = 2 test clips, 4 rounds, mean of seeds 3, 4, trained on A CPU "
        "in fp32."
    )


def test_label_skew_is_trained_with_the_defence(trained, tmp_path):
    study = heterogeneity_study.train_label_skew(opened(tmp_path, seeds=1), [0.1, 1.0])
    assert [(s.attack, s.partition, s.skew_alpha) for s in trained] == [
        ("pgd", "dirichlet", 0.1), ("pgd", "dirichlet", 1.0)
    ]  # fmt: skip
    assert list(study.skewed) == [0.1, 1.0]
    assert "made with abc" in study.skewed_origin


def test_tables_have_their_hardware_once_there_is_some(trained, tmp_path):
    study, table = opened(tmp_path), pd.DataFrame({"uar": [1.0]})
    study.save_table(table, "before")
    study = heterogeneity_study.train_interventions(study)
    study.save_table(table, "after")
    assert list(pd.read_csv(study.folder / "before.csv")) == ["uar"]
    assert list(pd.read_csv(study.folder / "after.csv")) == ["uar", "processor", "precision"]
    assert study.save_sentences(["One.", "Two."], "lessons") == "- One.\n- Two.\n"
    assert (study.folder / "lessons.md").read_text() == "- One.\n- Two.\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"interventions": ["prayer"]}, "intervention 'prayer' is unknown"),
        ({"defence": "none"}, "defence 'none' is unknown; choose from fgsm, pgd, deepfool"),
    ],
)
def test_unknown_names_are_refused_before_any_clip_is_read(tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        opened(tmp_path, **changed)

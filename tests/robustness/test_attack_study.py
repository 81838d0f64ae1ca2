"""The attacks on one model as notebook 03 shows them: contents, budgets, and checks that fail."""

from dataclasses import replace
from functools import partial

import pytest
import soundfile
import torch

from fedser_utils import attacks
from fedser_utils.analysis import metrics
from fedser_utils.core import devices
from fedser_utils.core.runs import Run
from fedser_utils.learning import vgg
from fedser_utils.robustness import attack_study
from fedser_utils.robustness.loaded_model import LoadedModel


@pytest.fixture(scope="module")
def loaded(trained, speakers4, tiny, tmp_path_factory):
    """The trained model as a run that has been loaded, with 14 clips."""
    model, x, y = trained
    settings = replace(tiny, epsilon=0.05, step_size=0.02, steps=2)
    config = {"model": "nature", "setting": "s", "study": "t", "started": "1"}
    run = Run(tmp_path_factory.mktemp("study") / "t-nature", config)
    return LoadedModel(
        run=run, settings=settings, data=speakers4, model=model,
        target_model=vgg.attack_target(model, bf16=False), device="cpu", bf16=False,
        test=speakers4.clips.iloc[:14], x=x[:14], y=y[:14],
        hardware=devices.hardware("cpu", bf16=False), origin="", caption="nature",
    )  # fmt: skip


@pytest.fixture(scope="module")
def clip(loaded):
    return attack_study.attack_one_clip(loaded)


def broken(*arguments, **options):
    """An attack that changes everything by 1."""
    return arguments[1] + 1


def test_the_first_recognised_clip_is_attacked(loaded, clip):
    right = (attacks.predictions(loaded.model, loaded.x) == loaded.y).tolist()
    assert clip.row == right.index(True)
    assert clip.name == loaded.test["clip"].iloc[clip.row]
    assert clip.predictions["original"] == clip.truth == loaded.test["emotion"].iloc[clip.row]
    assert list(clip.images) == ["original", "fgsm", "pgd", "deepfool"]
    assert clip.arrays["pgd"].shape == loaded.x.shape[2:]
    for name in ("fgsm", "pgd"):
        assert 0 < abs(clip.arrays[name] - clip.arrays["original"]).max() <= 0.05 + 1e-6
    assert f"({clip.truth}): the model predicts {clip.truth}, " in clip.caption
    assert f"{clip.predictions['deepfool']} under DeepFool." in clip.caption


def test_an_attack_beyond_its_budget_is_an_error(loaded, monkeypatch):
    monkeypatch.setitem(attacks.ATTACKS, "fgsm", broken)
    with pytest.raises(RuntimeError, match="fgsm changes a value by 1, more than epsilon"):
        attack_study.attack_one_clip(loaded)


def test_sounds_are_written_and_classified(loaded, clip, tmp_path):
    table = attack_study.audible_examples(loaded, clip, snr_db=30.0, folder=tmp_path)
    approximate = [f"{name}, approximate" for name in clip.images]
    assert table["sound"].tolist() == ["original", "PGD on the sound, 30 dB", *approximate]
    clean, noisy = (torch.from_numpy(soundfile.read(p)[0])[None] for p in table["path"][:2])
    assert 30 - 0.1 <= attacks.snr_db(clean, noisy).item() < 35
    assert table["y_pred"].between(0, 6).all()


def test_a_sound_louder_than_its_budget_is_an_error(loaded, clip, tmp_path, monkeypatch):
    quieter = partial(attacks.waveform_pgd, snr_db=20)
    monkeypatch.setattr(attacks, "waveform_pgd", lambda *a, snr_db, **o: quieter(*a, **o))
    with pytest.raises(RuntimeError, match="less than 30 dB"):
        attack_study.audible_examples(loaded, clip, snr_db=30.0, folder=tmp_path)


def test_perturbations_are_measured(loaded):
    table = attack_study.perturbation_table(loaded, clips=4).set_index("attack")
    assert table.loc[["fgsm", "pgd"], "linf"].tolist() == pytest.approx([0.05, 0.04], abs=1e-5)
    assert table.loc["pgd", "l2"] < table.loc["fgsm", "l2"]
    assert (table["run"] == "t-nature").all()
    assert list(table.columns[-2:]) == ["processor", "precision"]


def test_uar_by_epsilon_is_that_of_each_attack(loaded):
    table = attack_study.uar_by_epsilon(loaded, [0.001, 0.5]).set_index(["attack", "value"])
    assert list(table.index) == [(n, e) for n in ("fgsm", "pgd") for e in (0.001, 0.5)]
    x_adv = attacks.pgd(loaded.model, loaded.x, loaded.y, epsilon=0.5, step_size=0.125, steps=2)
    y_pred = attacks.predictions(loaded.model, x_adv)
    assert table.loc[("pgd", 0.5), "uar"] == pytest.approx(metrics.uar(loaded.y, y_pred))
    assert table.loc[("pgd", 0.5), "uar"] < table.loc[("pgd", 0.001), "uar"]
    assert (table["n"] == 14).all()


def test_convergence_has_steps_sizes_and_starts(loaded):
    table = attack_study.convergence(loaded, [1, 2], [0.01], restarts=2)
    assert list(table[["attack", "value"]].itertuples(index=False, name=None)) == [
        ("pgd", 1), ("pgd", 2), ("deepfool", 1), ("deepfool", 2),
        ("pgd, 10 steps of", 0.01), ("pgd, random starts", 1), ("pgd, random starts", 2),
    ]  # fmt: skip
    uar = table.set_index(["attack", "value"])["uar"]
    assert uar["pgd", 2] < uar["pgd", 1]
    assert uar["pgd, random starts", 2] <= uar["pgd, random starts", 1]


def test_transfer_goes_from_every_model_to_every_model(loaded, monkeypatch):
    other = vgg.build(7, width=1 / 16, generator=torch.Generator().manual_seed(1)).eval()
    models = {"nature": loaded.model, "pgd": other}
    monkeypatch.setattr(vgg, "load", lambda run: models[run.config["model"]])
    later = Run(loaded.run.folder, loaded.run.config | {"model": "pgd", "started": "2"})
    table = attack_study.transfer_matrix(loaded, [later, loaded.run])
    pairs = table[["source", "target"]].itertuples(index=False, name=None)
    assert list(pairs) == [(a, b) for a in models for b in models]
    uar = table.set_index(["source", "target"])["uar"]
    assert uar["nature", "nature"] < uar["pgd", "nature"]
    assert "run" not in table


def test_the_worst_case_is_at_most_each_attacks(loaded, monkeypatch):
    few = replace(loaded, x=loaded.x[:6], y=loaded.y[:6])
    table, first = attack_study.worst_case(few)
    assert table["attack"].tolist() == [
        "none", "fgsm", "pgd", "pgd ce, 20 steps", "pgd cw, 20 steps", "pgd dlr, 20 steps",
        "auto_pgd_dlr", "worst case",
    ]  # fmt: skip
    assert table["uar"].iloc[-1] == table["uar"].min() < table["uar"].iloc[0]
    assert first.name == "clips it was the first to fool"
    assert 0 < first.sum() <= 6
    monkeypatch.setattr(metrics, "worst_case", lambda rows: rows[rows["attack"] == "none"])
    with pytest.raises(RuntimeError, match="the worst case over all attacks is better"):
        attack_study.worst_case(few)


def test_an_attack_that_fails_on_a_weak_model_is_an_error(loaded, monkeypatch):
    chosen = {name: attacks.ART_ATTACKS[name] for name in ("auto_pgd_ce", "universal")}
    monkeypatch.setattr(attacks, "ART_ATTACKS", chosen)
    fooled = attack_study.check_on_weak_model(loaded, clips=3)
    assert list(fooled.index) == ["fgsm", "pgd", "deepfool", *chosen]
    assert (fooled.drop("universal") == 100).all()
    monkeypatch.setitem(attacks.ATTACKS, "deepfool", lambda model, x, y, **options: x)
    with pytest.raises(RuntimeError, match=r"attacks fail on a weak model: deepfool$"):
        attack_study.check_on_weak_model(loaded, clips=3)


def test_comparable_runs_share_setting_and_seed(loaded, monkeypatch):
    def run(name, **config):
        settings = loaded.settings.values() | {"seed": config.pop("seed", loaded.settings.seed)}
        folder = loaded.run.folder.with_name(name)
        return Run(folder, loaded.run.config | {"settings": settings} | config)

    runs = [run("a"), run("t-nature"), run("b", setting="other"), run("c", seed=99), run("d")]
    for each in runs[:-1]:
        each.folder.mkdir(exist_ok=True)
        (each.folder / "model.safetensors").touch()
    monkeypatch.setattr(attack_study, "find_runs", lambda outputs, study: runs)
    assert [each.id for each in attack_study.comparable_runs(loaded)] == ["t-nature", "a"]

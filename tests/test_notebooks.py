"""The notebooks as a user runs them: headless, from any folder, and refused where wrong."""

import ast
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import pytest
import soundfile

from fedser_utils.core import devices
from fedser_utils.core.settings import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ATTACKS = ("none", "fgsm", "pgd", "deepfool")
CELL_LINES, PAGE_LINES, PARAMETERS = 15, 60, 20  # at most
FIRST_LINE = '# Parameters: None means "as the preset says"'
DIALECT = {"seen", "said", "under", "at", "own", "found", "made", "told"}
PLUMBING = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp)
PLUMBING += (ast.GeneratorExp,)
DRAWN_BY = {"figures", "heatmaps", "plots", "save_figure"}  # what makes a figure, in a cell
READING = "**Read it so.**"


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def without_imports(source):
    """A cell's lines of code, without import statements."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return [line for line in lines if line.strip()]


def names(source):
    """Every name in a cell: variables, attributes, parameters of calls."""
    for node in ast.walk(ast.parse(source)):
        yield from (getattr(node, field, None) for field in ("id", "attr", "arg", "name"))


def imports(source):
    nodes = ast.walk(ast.parse(source))
    return any(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes)


def draws(source):
    """Whether a cell makes a figure of results."""
    return not imports(source) and bool(DRAWN_BY & {*names(source)})


def text_faults(cells):
    """What a page's explanations lack. cells: (kind, source) each."""
    texts = [source for kind, source in cells if kind == "markdown"]
    if not any(source.count("$$") >= 2 for source in texts):
        yield "no equation"
    for word in ("**Question.**", "**Method.**", "**Next.**"):
        if not any(word in source for source in texts):
            yield f"no {word}"
    for place, (kind, source) in enumerate(cells):
        following = (text for kind, text in cells[place + 1 : place + 2] if kind == "markdown")
        if kind == "code" and draws(source) and READING not in next(following, ""):
            yield f"no reading below {source.splitlines()[-1]}"


def code_faults(cells):
    """What a page's code has that belongs in a room. cells: (kind, source) each."""
    parameters, *rest = (source for kind, source in cells if kind == "code")
    declared = ast.parse(parameters).body
    if not parameters.startswith(FIRST_LINE) or len(declared) > PARAMETERS:
        yield f"{len(declared)} parameters"
    if sum(len(without_imports(source)) for source in rest) > PAGE_LINES:
        yield "too many lines of code"
    for place, source in enumerate(rest):
        if len(source.splitlines()) > CELL_LINES:
            yield f"too long: {source.splitlines()[0]}"
        if place and imports(source):
            yield f"imports late: {source.splitlines()[0]}"
        if any(isinstance(node, PLUMBING) for node in ast.walk(ast.parse(source))):
            yield f"plumbing: {source.splitlines()[0]}"
        for name in sorted({*names(source)} & (DIALECT | {"partial", "refusals"}), key=str):
            yield f"uses {name}: {source.splitlines()[0]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestStored:
    def test_its_pair_says_the_same(self, path):
        stored, pair = nbformat.read(path, 4), jupytext.read(path.with_suffix(".py"))
        assert [(c.cell_type, c.source) for c in stored.cells] == [
            (c.cell_type, c.source) for c in pair.cells
        ]

    def test_it_is_stored_without_outputs(self, path):
        cells = code(nbformat.read(path, 4))
        assert all(not c.outputs and c.execution_count is None for c in cells)
        assert ["parameters" in c.metadata.get("tags", []) for c in cells].count(True) == 1
        assert "parameters" in cells[0].metadata["tags"]

    def test_it_is_a_page(self, path):
        cells = [(cell.cell_type, cell.source) for cell in nbformat.read(path, 4).cells]
        assert not [*text_faults(cells), *code_faults(cells)]

    def test_its_kernel_is_named(self, path):
        assert json.loads(path.read_text())["metadata"]["kernelspec"]["name"] == "python3"


GOOD = [
    ("markdown", "# 01 A page\n**Question.** Which? **Method.** $$ a = b $$"),
    ("code", f"{FIRST_LINE}\nrounds: int = None"),
    ("code", "from fedser_utils import core\nsettings, page = core.notebook_settings(globals())"),
    ("code", "figures.save(picture)"),
    ("markdown", "**Read it so.** Were it false, it would be flat. **Next.** 02"),
]


def test_a_good_page_has_no_fault():
    assert not [*text_faults(GOOD), *code_faults(GOOD)]


@pytest.mark.parametrize(
    ("place", "cell", "fault"),
    [
        (0, ("markdown", "# A page\n**Question.** Which? **Method.** by sum"), "no equation"),
        (0, ("markdown", "# A page\n$$ a = b $$ **Method.**"), "no **Question.**"),
        (4, ("markdown", "It rises. **Next.** 02"), "no reading below figures.save(picture)"),
        (4, ("code", "1"), "no reading below figures.save(picture)"),
        (1, ("code", f"{FIRST_LINE}\n" + "a: int = 1\n" * 21), "21 parameters"),
        (1, ("code", "# The parameters\na: int = 1"), "1 parameters"),
        (3, ("code", "1\n" * 16), "too long: 1"),
        (3, ("code", "1\n" * 61), "too many lines of code"),
        (3, ("code", "import os"), "imports late: import os"),
        (3, ("code", "a = b(lambda: 1)"), "plumbing: a = b(lambda: 1)"),
        (3, ("code", "def f(): return 1"), "plumbing: def f(): return 1"),
        (3, ("code", "{a: 1 for a in b}"), "plumbing: {a: 1 for a in b}"),
        (3, ("code", "under = 1"), "uses under: under = 1"),
        (3, ("code", "a = partial(f, 1)"), "uses partial: a = partial(f, 1)"),
        (3, ("code", "with core.refusals(): f()"), "uses refusals: with core.refusals(): f()"),
    ],
)
def test_a_faulty_page_is_noticed(place, cell, fault):
    cells = [*GOOD[:place], cell, *GOOD[place + 1 :]]
    assert fault in [*text_faults(cells), *code_faults(cells)]


def papermill(name, target, **parameters):
    """Run a notebook from its folder; numbers go as papermill's -p sends them."""
    options = [str(w) for key, value in parameters.items() for w in ("-p", key, value)]
    command = [sys.executable, "-m", "papermill", f"{name}.ipynb", str(target)]
    folder = str(Path(sys.executable).parent)
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": folder + os.pathsep + os.environ["PATH"],
    }
    return subprocess.run(
        [*command, *options],
        cwd=ROOT / "notebooks",
        capture_output=True,
        text=True,
        env=environment,
    )


@pytest.fixture(scope="module")
def one_model(tmp_path_factory):
    """Notebooks 01, 02 and 05 at the preset smoke; the folder of their copies and results."""
    outputs = tmp_path_factory.mktemp("one_model")
    common = {"preset": "smoke", "outputs": outputs}
    for name, more in (
        ("01_data", {}),
        ("02_fl_advtrain", {"width": 0.03125}),
        ("05_analysis", {}),
    ):
        done = papermill(name, outputs / f"{name}.ipynb", **common, **more)
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
    return outputs


def test_a_model_is_trained_and_analysed(one_model):
    folder = one_model / "smoke"
    written = {f"fig{i}.{ending}" for i in (4, 5, 6) for ending in ("png", "pdf")}
    written |= {f"{name}.{e}" for name in ("table2", "table3", "speakers") for e in ("csv", "tex")}
    assert {path.name for path in folder.iterdir()} >= written | {"rejected.csv"}
    assert len(pd.read_csv(folder / "table3.csv")) == 2 + 3 * 2
    assert pd.read_csv(folder / "table2.csv")["sum"].iloc[-1] == 63
    table_3_is_what_the_predictions_say(one_model)
    every_copy_holds_pictures(one_model)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Notebooks 01 to 06 at the preset smoke, with a centralised training; the folder of their
    copies and results."""
    outputs = tmp_path_factory.mktemp("study")
    common = {"preset": "smoke", "outputs": outputs, "width": 0.03125}
    jobs = [("01_data", {}), *(("02_fl_advtrain", {"attack": a}) for a in ATTACKS)]
    jobs += [("02_fl_advtrain", {"clients": "pooled"})]
    jobs += [("03_attacks", {}), ("04_randomisation", {}), ("05_analysis", {})]
    jobs += [("06_adaptive", {"draws": 4})]
    for name, parameters in jobs:
        given = common | parameters
        done = papermill(name, outputs / f"{name}.ipynb", **given)
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
    return outputs


@pytest.mark.long
def test_the_whole_study_runs(study):
    made = {path.name for path in (study / "smoke").iterdir()}
    names = (*(f"fig{i}" for i in (2, 4, 5, 6)), "speakers", "draw", "tuning")
    names = (*names, "eot", "security", "certified")
    figures = {f"{name}.{ending}" for name in names for ending in ("png", "pdf")}
    names = ("table2", "table3", "gains", "speakers")
    names = (*names, "centralised", "adaptive")
    written = {f"{name}.{ending}" for name in names for ending in ("csv", "tex")}
    assert made >= figures | written | {"rejected.csv", "randomisation.csv", "cost.csv"}
    table = pd.read_csv(study / "smoke" / "table3.csv")
    assert len(table) == 8 + 3 * 4 + 8
    assert table["uar"].between(0, 100).all()
    counts = pd.read_csv(study / "smoke" / "table2.csv")
    assert counts["sum"].iloc[-1] == 63


@pytest.mark.runtimes
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("runtime", ["simulation", "deployment"])
def test_training_elsewhere_looks_the_same(runtime, tmp_path):
    given = {"preset": "smoke", "outputs": tmp_path, "width": 0.03125, "attack": "fgsm"}
    out = tmp_path / "out.ipynb"
    done = papermill("02_fl_advtrain", out, **given, runtime=runtime)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = json.dumps(nbformat.read(out, 4).cells)
    assert "round 2 of 2, finished: 3 of 3 clients replied; " in shown
    assert "missing: nobody" in shown
    (folder,) = tmp_path.glob("smoke-fgsm-*")
    assert len(pd.read_csv(folder / "rounds.csv")) == 2 * 4


@pytest.mark.long
def test_attacks_are_heard_and_checked_in_full(study):
    folder = study / "smoke"
    for name in ("uar_by_epsilon", "uar_by_steps", "transfer"):
        assert {(folder / f"{name}.{ending}").exists() for ending in ("csv", "png", "pdf")} == {
            True
        }
    transfer = pd.read_csv(folder / "transfer.csv")
    assert len(transfer) == 5 * 5
    worst = pd.read_csv(folder / "worst_case.csv").set_index("attack")["uar"]
    assert worst["worst case"] <= worst.min()
    sounds = sorted((folder / "audio").glob("*.wav"))
    assert len(sounds) == 6
    assert all(soundfile.info(path).subtype == "PCM_16" for path in sounds)
    shown = [
        o["data"]["text/html"]
        for c in code(nbformat.read(study / "03_attacks.ipynb", 4))
        for o in c.outputs
        if "text/html" in o.get("data", {})
    ]
    assert sum(html.count("<audio") for html in shown) == 6 + 3  # the explorer's twin has three
    assert "approximate" in "".join(shown)


def table_3_is_what_the_predictions_say(study):
    table = pd.read_csv(study / "smoke" / "table3.csv").set_index(["model", "attack", "condition"])
    paths = study.glob("smoke-*/predictions.parquet")
    rows = pd.concat(pd.read_parquet(path) for path in paths)
    rows = rows[rows["round"] == 2]
    for key, own in rows.groupby(["model", "attack", "condition"]):
        recalls = (own["y_true"] == own["y_pred"]).groupby(own["y_true"]).mean()
        assert table.loc[key, "uar"] == pytest.approx(100 * recalls.mean())
        assert table.loc[key, "n"] == len(own)
    here = table[["processor", "precision"]].drop_duplicates().to_numpy().tolist()
    assert here == [[devices.device_name("cpu"), "fp32"]]
    return table


@pytest.mark.long
def test_table_3_and_gains_can_be_recomputed_from_the_predictions(study):
    table = table_3_is_what_the_predictions_say(study)
    gains = pd.read_csv(study / "smoke" / "gains.csv")
    assert len(gains) == 3 + 3 * 3 + 3
    for row in gains.itertuples():
        shown = "randomised_adversarial" if row.defence == "randomisation" else "adversarial"
        shown = "original" if row.attack == "none" else shown
        assert row.after == pytest.approx(table.loc[(row.model, row.attack, shown), "uar"])
        assert row.gain == pytest.approx(row.after - row.before)


@pytest.mark.long
def test_tables_over_draws_can_be_recomputed_from_the_runs_evidence(study):
    table = pd.read_csv(study / "smoke" / "randomisation.csv")
    rows = pd.read_parquet(next(study.glob("smoke-nature-*/randomisation.parquet")))
    assert rows["draw"].nunique() == 20
    for row in table.itertuples():
        own = rows.query(f"attack == '{row.attack}' and variant == '{row.variant}'")
        own = own[own["averaged"] == row.averaged]
        right = (own["y_true"] == own["y_pred"]).groupby([own["draw"], own["y_true"]]).mean()
        each = 100 * right.groupby("draw").mean()
        assert row.uar == pytest.approx(each.mean())
        assert row.draws == len(each)
    honest = pd.read_csv(study / "smoke" / "adaptive.csv")
    assert sorted(honest["model"]) == ["deepfool", "fgsm", "nature", "nature", "nature", "pgd"]
    for row in honest.itertuples():
        path = next(study.glob(f"smoke-{row.model}-*/adaptive.parquet"))
        rows = pd.read_parquet(path).query("defended")
        for test, attack, said in (
            ("claimed", row.attack, row.claimed),
            ("strongest", row.budget, row.adaptive),
        ):
            own = rows[(rows["test"] == test) & (rows["attack"] == attack)]
            assert own.groupby("clip")["draw"].nunique().eq(4).all()
            recalls = (own["y_true"] == own["y_pred"]).groupby(own["y_true"]).mean()
            assert said == pytest.approx(100 * recalls.mean())
    checklist = pd.read_csv(study / "smoke" / "checklist_nature.csv")
    assert checklist["item"].tolist() == list(range(1, 18))
    assert set(checklist["result"]) <= {"pass", "fail"}


@pytest.mark.long
def test_headless_outputs_hold_pictures(study):
    every_copy_holds_pictures(study)


def every_copy_holds_pictures(study):
    for path in sorted(study.glob("0*.ipynb")):
        cells = nbformat.read(path, 4).cells
        outputs = [o for c in cells if c.cell_type == "code" for o in c.outputs]
        pictures = [o for o in outputs if "image/png" in o.get("data", {})]
        for cell, following in pairwise(cells):
            drawn = any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))
            if drawn and "diagrams." not in cell.source:
                assert READING in following.source, f"{path.name}: {cell.source}"
        assert pictures, path.name
        assert not [o for o in outputs if o.get("name") == "stderr"], path.name


@pytest.mark.parametrize(
    ("notebook", "parameters", "words"),
    [
        (
            "02_fl_advtrain",
            {"atack": "pgd"},
            "parameter 'atack' is unknown; did you mean attack? all are listed in docs/",
        ),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in [
                ("01_data", {"round": 3}, "parameter 'round' is unknown; did you mean rounds?"),
                (
                    "03_attacks",
                    {"epsilons": 0.1},
                    "epsilons 0.1 must be a list of numbers, such as",
                ),
                ("04_randomisation", {"draws": 0}, "draws 0 must be a whole number >= 1"),
                ("06_adaptive", {"eot": 3}, "eot 3 must be a list of numbers, such as"),
                ("05_analysis", {"preset": "paper"}, "study 'paper' has no complete run in"),
                ("08_dashboard", {"output": "a"}, "'output' is unknown; did you mean outputs?"),
            ]
        ),
    ],
)
def test_refusals(tmp_path, notebook, parameters, words):
    target = tmp_path / "out.ipynb"
    given = {"preset": "smoke", "outputs": tmp_path / "outputs"} | parameters
    done = papermill(notebook, target, **given)
    assert done.returncode == 1
    errors = [
        o for c in code(nbformat.read(target, 4)) for o in c.outputs if o.output_type == "error"
    ]
    assert len(errors) == 1
    assert errors[0].ename == "InputError"
    assert errors[0].traceback == [f"InputError: {errors[0].evalue}"]
    assert done.stderr.strip().endswith(errors[0].evalue)
    assert words in errors[0].evalue
    assert "\n" not in errors[0].evalue
    assert not list((tmp_path / "outputs").glob("*-s0-*"))


def test_parameters_are_explained():
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "--help-notebook", "02_fl_advtrain.ipynb"],
        cwd=ROOT / "notebooks", capture_output=True, text=True,
    )  # fmt: skip
    assert "adversarial training with: none, fgsm, pgd, deepfool" in done.stdout


@pytest.fixture(scope="module")
def unlike(tmp_path_factory, speech_like):
    """07 on two corpora that differ by their level; the folder of its results."""
    outputs = tmp_path_factory.mktemp("unlike")
    corpus = speech_like(outputs / "corpora", loud=0.5, quiet=0.01, seconds=1.5)
    given = {"preset": "smoke", "outputs": outputs, "width": 0.03125, "corpus": corpus}
    out = outputs / "out.ipynb"
    done = papermill("07_heterogeneity", out, **given, seconds=1.5)
    assert done.returncode == 0, done.stderr[-3000:]
    return outputs / "smoke-loud+quiet" / "heterogeneity"


@pytest.mark.long
def test_corpora_that_differ_are_compared(unlike):
    table = pd.read_csv(unlike / "interventions.csv").set_index("intervention")
    assert list(table.index) == [
        "as given", "local batch norm", "re-estimated batch norm", "group norm"
    ]  # fmt: skip
    assert {"corpus loud", "corpus quiet", "adversarial pgd", "gain_low"} <= {*table.columns}
    shift = pd.read_csv(unlike / "input.csv").set_index(["level", "corpus"])["loudness"]
    assert shift["as recorded", "loud"] - shift["as recorded", "quiet"] > 1
    assert abs(shift["level rms", "loud"] - shift["level rms", "quiet"]) < 0.2
    said = (unlike / "lessons.md").read_text()
    assert "loud" in said
    assert "With one seed" in said
    results = pd.read_csv(unlike / "results.csv")
    assert set(results["scope"]) == {"all", "corpus", "language", "client"}
    names = ("clients", "input", "drift", "batch_norm", "learning", "alpha")
    assert all((unlike / f"{name}.png").exists() for name in names)


@pytest.mark.long
def test_machine_sounds_have_classes_and_no_emotions(tmp_path):
    """01 and 02 on clips that are no speech, with another front end."""
    given = {"preset": "smoke", "outputs": tmp_path, "corpus": "machines"}
    given |= {"speakers": 2, "clips": 28}
    training = {"width": 0.03125, "attack": "fgsm", "rounds": 1}
    for name, more in (("01_data", {}), ("02_fl_advtrain", training)):
        done = papermill(name, tmp_path / f"{name}.ipynb", **given, **more)
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        shown = [c.get("outputs") for c in code(nbformat.read(tmp_path / f"{name}.ipynb", 4))]
        assert "emotion" not in json.dumps(shown)
    counts = pd.read_csv(tmp_path / "smoke-machines" / "table2.csv")
    assert counts.columns[0] == "class"
    assert "cavitation" in set(counts["class"])
    (run,) = tmp_path.glob("smoke-machines-fgsm-*")
    made = json.loads((run / "config.json").read_text())["settings"]
    assert (made["window"], made["bands"]) == (1024, 128)

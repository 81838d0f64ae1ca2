"""README, CONTRIBUTING and docs/ name only what exists: links, files, commands, settings."""

import ast
import dataclasses
import importlib.util
import inspect
import re
import subprocess

import pytest

from fedser_utils.core.settings import ROOT, Settings

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FORMER = "names.md"  # its left column lists names that no longer exist
FORMER_NAMES = {  # of the package before its rooms: dotted name -> parameters, if it has any
    name: parameters.rstrip(")").split(", ")
    for name, _, parameters in (
        line.partition("(") for line in (ROOT / "tests/former_names.txt").read_text().splitlines()
    )
}
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."}
ENDINGS = (".py", ".ipynb", ".yaml", ".yml", ".toml", ".md", ".txt", ".cff")
WRITTEN = ("outputs/", "deploy/keys", "deploy/data")  # by a run or a script; reference/ is stored
RESULTS = ("out.ipynb", "o.ipynb", "lessons.md")
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def present(page):
    """A page's text; of the table former | present, the second column."""
    text = page.read_text()
    if page.name != FORMER:
        return text
    return "\n".join(line.split("|")[2] for line in text.splitlines() if line.startswith("|"))


def blocks(text, language=""):
    return [body for kind, body in FENCE.findall(text) if kind == language or not language]


def code(text):
    """The inline code and the code blocks of a page."""
    return [*re.findall(r"`([^`\n]+)`", FENCE.sub("", text)), *blocks(text)]


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.MULTILINE)
    plain = ("".join(c for c in h.lower() if c in " -_" or c.isalnum()) for h in headings)
    return {heading.replace(" ", "-") for heading in plain}


def broken_links(text, folder):
    """Relative links and pictures whose file or heading does not exist."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        name, _, anchor = target.partition("#")
        path = folder / name
        if re.match(r"\w+:", target) or (not name and anchor in anchors(text)):
            continue
        if not name or not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            yield target


def missing_targets(text):
    """Targets that ``make`` does not have."""
    for piece in code(text):
        for words in re.findall(r"\bmake ((?:[-\w=$/.,~]+ ?)+)", piece):
            yield from (w for w in words.split() if "=" not in w and w not in TARGETS)


def missing_files(text):
    """File names and paths of the repository that do not exist."""
    for piece in code(text):
        for name in re.findall(r"(?<![\w/.~$<-])[\w-][\w./-]*", piece):
            name = name.rstrip(".")
            in_folder = "/" in name and name.split("/")[0] in FOLDERS
            stored = not name.startswith(WRITTEN) or name.startswith("outputs/reference")
            invented = name in RESULTS or "NN_name" in name
            if invented or not stored or not (in_folder or name.endswith(ENDINGS)):
                continue
            here = (ROOT, ROOT / "fedser_utils", ROOT / "notebooks", ROOT / "benchmarks")
            if not any((folder / name).exists() for folder in here):
                yield name


def misplaced_names(text):
    """Names in a list item or table row that none of the Python files in the same item has."""
    for item in re.split(r"^(?=\d+\. |- |\| |#|```)|\n\n", text, flags=re.MULTILINE):
        files = [ROOT / name for name in re.findall(r"`([\w/]+\.py)`", item)]
        source = "\n".join(path.read_text() for path in files if path.is_file())
        names = re.findall(r"`([A-Za-z_]\w+)`", item)
        yield from (n for n in names if source and not re.search(rf"\b{n}\b", source))


def missing_notebooks(text):
    names = re.findall(r"\b(0\d_[a-z_]+)", "\n".join(code(text)))
    return [name for name in names if not (ROOT / "notebooks" / f"{name}.ipynb").exists()]


def missing_modules(text):
    for name in re.findall(r"python -m (fedser_utils[\w.]+)", "\n".join(code(text))):
        if importlib.util.find_spec(name) is None:
            yield name


def unknown_parameters(text):
    """Names after papermill's -p that are neither settings nor in a notebook's cell."""
    known = {field.name for field in dataclasses.fields(Settings)}
    for path in (ROOT / "notebooks").glob("0*.py"):
        known |= {*re.findall(r"^(\w+): ", path.read_text(), flags=re.MULTILINE)}
    return [name for name in re.findall(r" -p (\w+)", "\n".join(code(text))) if name not in known]


def broken_names(source):
    """Imports of the package, attributes of its modules, and keywords that do not resolve."""
    tree, modules = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedser_utils"):
            for alias in node.names:
                value = resolve(node.module, alias.name)
                modules[alias.asname or alias.name] = value
                if value is None:
                    yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if type(module).__name__ == "module" and resolve(module.__name__, node.attr) is None:
                yield f"{module.__name__}.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = modules.get(getattr(node.func.value, "id", ""))
            yield from wrong_keywords(getattr(owner, node.func.attr, None), node.keywords)


def wrong_keywords(function, keywords):
    parameters = inspect.signature(function).parameters if function else {}
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if function and not anything:
        yield from (k.arg for k in keywords if k.arg not in parameters)


def broken_present_names(text):
    """Names of rooms in the second column of a table former | present that do not resolve, and
    parameters that they do not have."""
    rooms = "|".join(path.parent.name for path in (ROOT / "fedser_utils").glob("*/__init__.py"))
    for line in text.splitlines():
        if line.startswith("| `"):
            named = re.findall(rf"`((?:{rooms})\.[\w.]+)(?:\(([^`()]*)\))?", line.split("|")[2])
            for name, parameters in named:
                value = value_of(name)
                if value is None:
                    yield name
                elif parameters:
                    yield from {*bare(parameters)} - {*inspect.signature(value).parameters}


def broken_former_names(text):
    """Names in the first column, or listed as without a successor, that the package did not have
    before its rooms, and parameters that they did not have. Left out: the table of commands."""
    names = [
        name
        for line in text.partition("\n## Modules\n")[2].splitlines()
        for name in re.findall(r"`([^`]+)`", line.split("|")[1] if line[:1] == "|" else line)
    ]
    for whole in names:
        name, _, parameters = whole.rstrip(")").partition("(")
        if name in FORMER_NAMES:
            yield from {*bare(parameters)} - {*FORMER_NAMES[name]}
        else:
            yield name


def bare(parameters):
    """The names in ``x, steps=, *names``."""
    return [p.strip(" *=") for p in parameters.split(",") if p.strip()]


def value_of(dotted):
    """A module of the package, or something in one: ``core.runs.Run.table``; None if neither."""
    parts = ["fedser_utils", *dotted.split(".")]
    for count in range(len(parts), 1, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            fields = getattr(value, "__dataclass_fields__", {})
            value = fields.get(part, getattr(value, part, attribute(value, part)))
        return value
    return None


def attribute(value, name):
    """The line of a class that sets ``self.name``; None if there is none."""
    source = inspect.getsource(value) if inspect.isclass(value) else ""
    return re.search(rf"\bself\.{name}\b[^=\n]*=[^=].*", source)


def resolve(module, name):
    """The attribute or submodule ``name``; None if there is neither."""
    try:
        found = getattr(importlib.import_module(module), name, None)
        return importlib.import_module(f"{module}.{name}") if found is None else found
    except ModuleNotFoundError:
        return None


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.encode()) <= 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
class TestPage:
    def test_links_and_pictures_exist(self, page):
        assert not [*broken_links(page.read_text(), page.parent)]

    def test_commands_exist(self, page):
        text = present(page)
        assert not [*missing_targets(text), *missing_modules(text), *unknown_parameters(text)]

    def test_files_and_notebooks_exist(self, page):
        text = present(page)
        assert not [*missing_files(text), *missing_notebooks(text), *misplaced_names(text)]

    def test_python_compiles_and_its_names_resolve(self, page):
        for source in blocks(page.read_text(), "python"):
            compile(source, page.name, "exec")
            assert not [*broken_names(source)]


def test_former_names_existed_and_present_names_resolve():
    text = (ROOT / "docs" / FORMER).read_text()
    assert not [*broken_former_names(text)]
    assert not [*broken_present_names(text)]


def test_every_page_is_reachable_from_the_readme():
    linked = {*re.findall(r"\((docs/\w+\.md|CONTRIBUTING\.md)", README.read_text())}
    assert linked == {str(page.relative_to(ROOT)) for page in PAGES if page != README}


def test_every_notebook_and_every_documented_target_is_named():
    names = {path.stem for path in (ROOT / "notebooks").glob("0*.ipynb")}
    assert names == {*re.findall(r"^\| `(0\w+)`", README.read_text(), flags=re.MULTILINE)}
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True)
    targets = {line.split()[0] for line in listed.stdout.splitlines()}
    text = "\n".join(piece for page in PAGES for piece in code(page.read_text()))
    assert targets == {t for t in targets if re.search(rf"make {t}\b", text)}


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (lambda text: broken_links(text, ROOT), "[a](docs/nowhere.md)"),
        (lambda text: broken_links(text, ROOT), "![a](outputs/reference/fig9.png)"),
        (lambda text: broken_links(text, ROOT), "[a](CONTRIBUTING.md#no-such-heading)"),
        (lambda text: broken_links(text, ROOT), "[a](#no-such-heading)"),
        (missing_targets, "`make tests`"),
        (missing_targets, "```bash\nmake study PRESET=demo papers\n```"),
        (missing_files, "`fedser_utils/attacks/carlini.py`"),
        (missing_files, "`attacks/carlini.py`"),
        (missing_files, "```bash\npython benchmarks/nothing.py --quick\n```"),
        (missing_files, "`outputs/reference/table9.csv`"),
        (misplaced_names, "1. `fedser_utils/data/readers.py`: a row in `PARSERS`."),
        (missing_notebooks, "`07_dashboard`"),
        (missing_modules, "`python -m fedser_utils.study --plan`"),
        (unknown_parameters, "`papermill 02_fl_advtrain.ipynb o.ipynb -p atack pgd`"),
        (broken_names, "from fedser_utils import trial"),
        (broken_present_names, "| `features.pool` | `data.log_mel.pool` |"),
        (broken_present_names, "| `runs.Run.rows` | `core.runs.Run.rows` |"),
        (broken_present_names, "| `features` | `data.features` |"),
        (broken_present_names, "| `runs.Run.kept` | `core.runs.Run.cached(table)` |"),
        (broken_former_names, "\n## Modules\n| `feature` | `data.log_mel` |"),
        (broken_former_names, "\n## Modules\n| `grids.ClientGrid.checked_reply` | |"),
        (broken_former_names, "\n## Modules\n| `attacks.fgsm(clips=)` | |"),
        (broken_former_names, "\n## Modules\nNo longer needed: `canvas.HERZ`."),
        (broken_names, "from fedser_utils.learning import vgg\nvgg.folded(1)"),
        (broken_names, "from fedser_utils import attacks\nattacks.fgsm(m, x, y, eps=1)"),
    ],
)
def test_a_wrong_name_is_noticed(check, text):
    assert [*check(text)]

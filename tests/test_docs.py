"""The documentation says what is there: its code runs, its tables are complete, its links lead somewhere."""

import inspect
import json
import pathlib
import re

import keras
import pytest

import keras_prune
import tflite_export
from keras_prune import allocation, criteria, devices, growth, patterns, schedules, search
from keras_prune.strategy import Strategy
from tests import readme

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = readme.PATH.read_text(encoding="utf-8")
PAGES = ["README.md", "CHANGELOG.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = (keras_prune, schedules, criteria, patterns, allocation, growth, devices, search, tflite_export)
PUBLIC = {f"{module.__name__}.{name}": getattr(module, name) for module in MODULES for name in module.__all__}
OBJECTS = {name: thing for name, thing in PUBLIC.items() if inspect.isclass(thing) or inspect.isfunction(thing)}


def table_names(text):
    """The words in the code spans of the first cell of every row of a table."""
    cells = re.findall(r"^\|((?:\\\||[^|])*)\|", text, re.MULTILINE)
    spans = [span for cell in cells for span in re.findall(r"`([^`]*)`", cell)]
    return {word for span in spans for word in re.findall(r"\w+", span)}


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = readme.run()
    printed = capsys.readouterr().out
    assert "1x4 blocks" in printed
    assert "Left out: " in printed
    assert (tmp_path / "sparse.tflite").stat().st_size < (tmp_path / "dense.tflite").stat().st_size
    assert keras_prune.report(namespace["plain"]).sparsity == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_readme_names_everything_public_in_a_table(name):
    assert name.rsplit(".", 1)[-1] in table_names(README)


@pytest.mark.parametrize(
    "base", [criteria.Criterion, patterns.Pattern, allocation.Allocation, growth.Growth], ids=lambda base: base.kind
)
def test_the_readme_gives_the_short_names(base):
    assert base.known_names
    for short, strategy in base.known_names.items():
        name = strategy.__name__ if isinstance(strategy, type) else type(strategy).__name__
        assert re.search(rf'^\| `{name}` \| `"{short}"` \|', README, re.MULTILINE), short


@pytest.mark.parametrize("name", OBJECTS)
def test_public_objects_have_a_summary_of_one_line(name):
    own = vars(OBJECTS[name]).get("__doc__") if inspect.isclass(OBJECTS[name]) else OBJECTS[name].__doc__
    assert own, "an inherited docstring says nothing of this object"
    first, *rest = inspect.cleandoc(own).splitlines()
    assert first.endswith((".", "$."))
    assert not rest or rest[0] == ""


def is_used(thing):
    """Whether users call or make it; results, errors and values that they are handed need no example."""
    return inspect.isfunction(thing) or issubclass(thing, (Strategy, keras.Layer, keras.callbacks.Callback))


def has_example(thing):
    """In its own docstring, in a base's (Strategy's is about none in particular), or where it says `(see ...)`."""
    bases = thing.__mro__ if inspect.isclass(thing) else [thing]
    ours = [base for base in bases if base.__module__.startswith(("keras_prune", "tflite_export"))]
    docs = [base.__doc__ or "" for base in ours if base is not Strategy]
    seen = re.search(r"\(see `(\w+)`\)", docs[0])
    return any("Example:" in doc for doc in docs) or bool(seen and has_example(PUBLIC[f"keras_prune.{seen.group(1)}"]))


@pytest.mark.parametrize("name", [name for name, thing in OBJECTS.items() if is_used(thing)])
def test_what_users_write_has_an_example(name):
    assert has_example(OBJECTS[name])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)):
        if not link.startswith(("http://", "https://", "#")):
            assert (ROOT / page).parent.joinpath(link.split("#")[0]).exists(), link


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells
    for cell in cells:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    assert any("assert " in "".join(cell["source"]) for cell in cells)

"""README and docs: the code runs, the links lead somewhere, the words fit any machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page, "python"), 1)
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
@pytest.mark.parametrize("code", EXAMPLES)
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each for itself, in an empty folder."""
    for package in re.findall(r"^(?:import|from) ([\w.]+)", code, re.MULTILINE):
        pytest.importorskip(package, reason=f"the example needs {package}")
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(code, "example", "exec"), {})
    except ImportError as error:  # of a package that conv3dt wants for this
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["keras_user", "torch_user", "numpy_user"])
def test_readme_shows_the_examples(name: str) -> None:
    """One of README's blocks is the example, without docstring and comments."""
    script = ast.parse((ROOT / "examples" / f"{name}.py").read_text())
    script.body = script.body[1:]
    shown = {ast.unparse(ast.parse(code)) for code in blocks(ROOT / "README.md", "python")}
    assert ast.unparse(script) in shown


def test_setup_is_one_line_each() -> None:
    commands = "".join(blocks(ROOT / "README.md", "sh")).splitlines()
    assert [c for c in commands if "pip install -e" in c] == [
        "python -m pip install -e '.[demo]' && python -m conv3dt demo",
        "python -m pip install -e '.[test]' && python -m pytest",
    ]


@each_page
def test_no_machine_paths(page: Path) -> None:
    paths = re.findall(r"(?:^|[\s`'\"(=])(?:/|~/|[A-Z]:\\)[\w.]+[/\\]\S*", page.read_text(), re.M)
    assert [path.strip() for path in paths if ".keras/" not in path] == []


@each_page
def test_no_host_names(page: Path) -> None:
    """No page needs the network: a checkout explains itself."""
    hosts = r"\w+://|\b[\w-]+\.(?:org|com|io|net|dev)\b"
    assert re.findall(hosts, page.read_text(), re.IGNORECASE) == []


@each_page
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = re.findall(r"`((?:conv3dt|src_pyx|tests|benchmarks)/[\w./]+)`", text)
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_readme_has_room_for_the_race() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("<!-- race:begin -->") == text.count("<!-- race:end -->") == 1

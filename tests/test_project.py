"""What a newcomer finds first: the licence, whom to cite, pages whose links lead somewhere."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_licence_is_named_and_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "LICENSE").read_text()
    assert project["license"] == "Apache-2.0" and project["license-files"] == ["LICENSE"]
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert "urls" not in project
    assert not any(c.startswith("License ::") for c in project["classifiers"])  # PEP 639: the expression stands for it


def test_the_citation_names_the_papers() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == "Apache-2.0"
    assert len(citation["references"]) == 4
    for paper in citation["references"]:
        assert {"type", "title", "authors"} <= paper.keys() and paper["authors"]
        words = re.compile(r"\s+".join(map(re.escape, paper["title"].split())), re.IGNORECASE)
        shared = ROOT.parent / "shared" / "papers"
        if shared.is_dir():
            assert any(words.search(text.read_text()) for text in shared.glob("*.txt")), paper["title"]


def test_commands_on_the_path(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each script is there, and its help calls it by its name."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts.keys() == {"clic-encode", "clic-decode", "clic-inspect"}
    for name, place in scripts.items():
        module, function = place.split(":")
        for started_as, called in ((f"/usr/bin/{name}", name), ("x.py", f"python -m {module}")):
            monkeypatch.setattr("sys.argv", [started_as, "--help"])
            with pytest.raises(SystemExit) as end:
                getattr(importlib.import_module(module), function)()
            assert end.value.code == 0
            assert f"usage: {called} " in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"", text):
        link = target[0] or target[1]
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        place = (page.parent / path) if path else page
        assert place.exists(), f"{page.name}: {link}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", place.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in slugs, f"{page.name}: {link}"

"""The rules of the house that no single module can keep: imports, names, the docs' tables."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("sat_interp/**/*.py"), *ROOT.glob("evaluations/**/*.py")])
SUITE = ROOT / "evaluations" / "suite"
ROOMS = {folder.name for folder in SUITE.iterdir() if (folder / "__init__.py").exists()}


WITHOUT_CIRCLES = ("sat_interp", "evaluations")
"""Packages whose modules import each other in one direction only."""


def _imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


class _WithoutTypeChecking(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        is_for_types = "TYPE_CHECKING" in ast.unparse(node.test)
        return node.orelse if is_for_types else self.generic_visit(node)


def _module(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported_modules(file: Path, known: Collection[str]) -> Iterator[str]:
    """Known modules that a file imports, inside functions too, but not for type checking alone."""
    for node in ast.walk(_WithoutTypeChecking().visit(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from [name for name in (inner, node.module) if name in known][:1]


def _circles(files: list[Path]) -> list[list[str]]:
    """Groups of modules each of which imports, through others, itself."""
    known = {_module(file): file for file in files}
    graph = networkx.DiGraph()
    for module, file in known.items():
        graph.add_edges_from((module, name) for name in _imported_modules(file, known))
    graph.remove_edges_from(list(networkx.selfloop_edges(graph)))
    groups = networkx.strongly_connected_components(graph)
    return [sorted(group) for group in groups if len(group) > 1]


@pytest.mark.parametrize("package", WITHOUT_CIRCLES)
def test_no_module_imports_itself_through_others(package):
    assert _circles([file for file in FILES if _module(file).split(".")[0] == package]) == []


def test_a_circle_is_seen_inside_functions_and_not_among_types(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "one.py").write_text("import two\n")
    (tmp_path / "two.py").write_text("def f():\n    from three import g\n")
    (tmp_path / "three.py").write_text("from one import h\n")
    (tmp_path / "four.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import five\n"
    )
    (tmp_path / "five.py").write_text("import four\n")
    assert _circles(sorted(tmp_path.glob("*.py"))) == [["one", "three", "two"]]


def test_there_are_files_to_check():
    assert len(FILES) > 40


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file):
    imports = _imports(file)
    if file.is_relative_to(ROOT / "sat_interp"):
        assert not {name for name in imports if name.split(".")[0] == "evaluations"}
        return
    if file.is_relative_to(SUITE):
        room = file.relative_to(SUITE).parts[0]
        others = {f"evaluations.suite.{other}" for other in ROOMS - {room}}
        assert not {name for name in imports if ".".join(name.split(".")[:3]) in others}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_unpickled_and_no_device_is_hard_wired(file):
    text = file.read_text()
    assert '"cuda"' not in text
    assert "pickle" not in _imports(file)
    assert "torch.load(" not in text
    assert len(text.splitlines()) <= 500


def test_the_public_names_load_nothing_until_asked():
    code = "import sat_interp, sys; print('torch' in sys.modules, *sat_interp.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, *names = done.stdout.split()
    assert loaded == "False"
    assert {"SelfAblationConfig", "SelfAblatingTransformer", "train"} <= set(names)


def test_every_public_name_is_where_it_is_said_to_be():
    import sat_interp

    for name in sat_interp.__all__:
        assert getattr(sat_interp, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sat_interp.nonsense


def test_the_documentation_lists_every_hook_point_of_ours_and_no_other():
    from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config

    shape = gpt_neo_config(n_layers=1, d_model=8, n_heads=2, d_vocab=5, n_ctx=4)
    model = SelfAblatingTransformer(shape, SelfAblationConfig(variant="local", k_attention=1))
    ours = {
        name.replace("blocks.0.", "blocks.{l}.")
        for name in model.hook_dict
        if "gates." in name or "ablated." in name
    }
    listed: set[str] = set()
    for line in (ROOT / "docs" / "model.md").read_text().splitlines():
        cell = line.split("|")[1] if line.startswith("| `") else ""
        prefix = ""
        for name in re.findall(r"`([\w.{}]*hook_\w+)`", cell):
            # later names of a row stand without the path of the first
            prefix = name.rpartition(".")[0] or prefix
            listed.add(f"{prefix}.{name.rpartition('.')[2]}")
    assert listed == ours


def test_the_map_of_the_house_names_what_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for package in ("sat_interp", "evaluations"):
        for init in (ROOT / package).glob("*/__init__.py"):
            assert f"| `{package}/{init.parent.name}/` |" in page, init.parent
        for module in (ROOT / package).rglob("*.py"):  # the page has a line for each
            assert ast.get_docstring(ast.parse(module.read_text())) or not module.stat().st_size

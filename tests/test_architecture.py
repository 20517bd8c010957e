"""The plan of the rooms: no circle of imports, no arrow up, a reading side without torch, and no giant.

CONTRIBUTING.md has the map.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Where each package stands in the repository, and the name under which it is installed.
PACKAGES = {"lsmooth": "lsmooth", "cli": "lsmooth.cli", "figures": "lsmooth.figures"}

# Lines, the docstring included; those of a function are counted from `def`.
LONGEST = {"class": 300, "module": 450, "function": 60}

# A room imports its equals and the rooms below it. Two rooms of one height do not import each other mutually.
HEIGHT = {
    "errors": 0,
    "estimators": 0,
    "join": 0,
    "precision": 0,
    "trace": 1,
    "optim": 1,
    "fit": 2,
    "theory": 2,
    "advice": 3,
    "parallel": 2,
    "replay": 3,
    "measure": 4,
    "loop": 5,
    "instrument": 6,
    "stepping": 6,
    "recorder": 7,
    "figures": 8,
    "tasks": 8,
    "integrations": 8,
    "cli": 9,
}

# The rooms and commands that only read traces. None of them may ever load torch.
READING_ROOMS = {"errors", "estimators", "trace", "fit", "theory", "advice", "figures"}
READING_COMMANDS = {"advise", "estimate", "export", "info", "numbers", "outputs", "plot", "report", "table", "tail"}


@dataclass(frozen=True)
class Module:
    """One source file: its installed name, whether it is a package, and its syntax tree."""

    name: str
    path: str
    package: bool
    tree: ast.Module
    lines: int

    @property
    def room(self) -> str:
        return self.name.split(".")[1] if "." in self.name else ""


@cache
def read_house(root: Path) -> dict[str, Module]:
    """Return every module of the packages below `root` by its installed name."""
    house = {}
    for folder, name in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            package = parts[-1] == "__init__"
            full = ".".join([name, *(parts[:-1] if package else parts)])
            text = path.read_text(encoding="utf-8")
            place = path.relative_to(root).as_posix()
            house[full] = Module(full, place, package, ast.parse(text), len(text.splitlines()))
    return house


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def import_nodes(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that ever run, those inside functions included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif is_type_checking(node):
            for other in node.orelse:
                yield from import_nodes(ast.Module([other], []))
        else:
            yield from import_nodes(node)


def imported(module: Module, house: dict[str, Module]) -> set[str]:
    """Return the full names that a module imports: modules of the house, and others as they are written."""
    names = set()
    for node in import_nodes(module.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            continue
        above = module.name.split(".")[: None if module.package else -1]
        base = ".".join(above[: len(above) - node.level + 1] if node.level else [])
        source = ".".join(part for part in (base, node.module) if part)
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            names.add(inner if inner in house else source)
    return names


def circles(house: dict[str, Module]) -> set[str]:
    """Return the modules that import themselves through others, inside functions included."""
    arrows = {name: imported(module, house) & house.keys() for name, module in house.items()}
    return {name for name in house if name in reachable(arrows, arrows[name])}


def reachable(arrows: dict[str, set[str]], start: set[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += arrows.get(name, ())
    return found


def arrows_up(house: dict[str, Module]) -> set[str]:
    """Return the imports that point to a higher room, or that close a circle of two rooms of one height."""
    found = set()
    pairs: dict[tuple[str, str], str] = {}
    for module in house.values():
        if not module.room:
            continue
        for name in imported(module, house) & house.keys():
            room = house[name].room
            if room in ("", module.room):
                continue
            arrow = f"{module.name} -> {name}"
            if HEIGHT[room] > HEIGHT[module.room] or (room == "figures" and module.room != "cli"):
                found.add(arrow)
            elif HEIGHT[room] == HEIGHT[module.room]:
                pairs[module.room, room] = arrow
    return found | {arrow for (above, below), arrow in pairs.items() if (below, above) in pairs}


def readers_of_torch(house: dict[str, Module]) -> set[str]:
    """Return the modules of the reading side that import torch, themselves or through others, at any time."""
    arrows = {}
    for name, module in house.items():
        direct = imported(module, house)
        # Whoever imports a.b.c runs the packages a and a.b first.
        packages = {".".join(other.split(".")[:end]) for other in direct for end in range(1, other.count(".") + 1)}
        arrows[name] = direct | packages
    reading = {
        name
        for name, module in house.items()
        if (module.room in READING_ROOMS and "gallery" not in name)
        or (module.room == "cli" and name.split(".")[-1] in READING_COMMANDS | {"cli"})
    }
    return {name for name in reading if "torch" in reachable(arrows, arrows[name])}


def giants(house: dict[str, Module], kind: str) -> set[str]:
    """Return what is longer than the limit of its kind, as path:qualified name."""

    def inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}{child.name}", child
                yield from inside(child, f"{prefix}{child.name}.")
            else:
                yield from inside(child, prefix)

    if kind == "module":
        return {module.path for module in house.values() if module.lines > LONGEST[kind]}
    kinds = ast.ClassDef if kind == "class" else (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        f"{module.path}:{name}"
        for module in house.values()
        for name, node in inside(module.tree, "")
        if isinstance(node, kinds) and node.end_lineno - node.lineno + 1 > LONGEST[kind]
    }


CHECKS = {
    "circles": circles,
    "arrows": arrows_up,
    "torch": readers_of_torch,
    "class": lambda house: giants(house, "class"),
    "module": lambda house: giants(house, "module"),
    "function": lambda house: giants(house, "function"),
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_house_is_built_by_its_plan(check):
    assert CHECKS[check](read_house(ROOT)) == set()


def test_every_module_has_its_room():
    rooms = {module.room for module in read_house(ROOT).values()} - {""}
    assert rooms - HEIGHT.keys() == set(), "give these rooms a height in HEIGHT"


# Whatever is wrong in a made-up house, and the check that finds it.
# Modules whose tests stand elsewhere: backends of one optimizer, which are held against one reference together.
TESTED_ELSEWHERE = {
    **dict.fromkeys(
        (
            f"lsmooth/optim/generalized_signsgd/{name}.py"
            for name in ("functional", "fused", "hyperparameters", "multi_tensor", "single_tensor")
        ),
        "optim/generalized_signsgd/test_optimizer.py",
    ),
    **dict.fromkeys(
        (
            *(f"lsmooth/optim/momentum/{name}.py" for name in ("directions", "multi_tensor", "single_tensor")),
            "lsmooth/optim/sgd_clip.py",
            "lsmooth/optim/sgd_normalized.py",
        ),
        "optim/momentum/test_optimizer.py",
    ),
    # Records without behaviour.
    "lsmooth/loop/step.py": "loop/test_attempt.py",
    "cli/__main__.py": "cli/test_main.py",
}


def where_tested(path: str) -> str:
    """Return where the tests of a module stand, in `tests/`."""
    room = Path(path).relative_to("lsmooth") if path.startswith("lsmooth/") else Path(path)
    return TESTED_ELSEWHERE.get(path) or str(room.with_name(f"test_{room.name}"))


@pytest.mark.parametrize(
    "path", [module.path for module in read_house(ROOT).values() if not module.path.endswith("__init__.py")]
)
def test_every_module_has_its_tests(path):
    assert (ROOT / "tests" / where_tested(path)).is_file()


def test_no_test_is_looked_for_elsewhere_in_vain():
    assert all((ROOT / path).is_file() for path in TESTED_ELSEWHERE)


SMALL = "x = 1\n"
LONG_FUNCTION = "def long():\n" + "    pass\n" * 60
LONG_CLASS = "class Long:\n" + "    x = 1\n" * 300
WRONG = {
    "two modules": (
        {"lsmooth/a.py": "import lsmooth.b", "lsmooth/b.py": "from lsmooth.a import x"},
        "circles",
        {"lsmooth.a", "lsmooth.b"},
    ),
    "a circle by relative imports": (
        {"lsmooth/fit/a.py": "from . import b", "lsmooth/fit/b.py": "from .a import x"},
        "circles",
        {"lsmooth.fit.a", "lsmooth.fit.b"},
    ),
    "a circle in a function and under if": (
        {"lsmooth/a.py": "def f():\n    import lsmooth.b", "lsmooth/b.py": "if True:\n    import lsmooth.a"},
        "circles",
        {"lsmooth.a", "lsmooth.b"},
    ),
    "up, inside a function": (
        {"lsmooth/trace/a.py": "def f():\n    import lsmooth.recorder", "lsmooth/recorder.py": SMALL},
        "arrows",
        {"lsmooth.trace.a -> lsmooth.recorder"},
    ),
    "figures from a task": (
        {"lsmooth/tasks/a.py": "from lsmooth.figures import b", "figures/b.py": SMALL},
        "arrows",
        {"lsmooth.tasks.a -> lsmooth.figures.b"},
    ),
    "the command line from figures": (
        {"figures/gallery/make.py": "from lsmooth.cli.plot import draw", "cli/plot.py": SMALL},
        "arrows",
        {"lsmooth.figures.gallery.make -> lsmooth.cli.plot"},
    ),
    "two rooms of one height that import each other": (
        {
            "lsmooth/fit/a.py": "import lsmooth.theory.a",
            "lsmooth/theory/a.py": SMALL,
            "lsmooth/theory/b.py": "import lsmooth.fit.a",
        },
        "arrows",
        {"lsmooth.fit.a -> lsmooth.theory.a", "lsmooth.theory.b -> lsmooth.fit.a"},
    ),
    "torch through a package": (
        {
            "cli/info.py": "def f():\n    from lsmooth.tasks.plan import Plan",
            "lsmooth/tasks/__init__.py": "import torch.nn",
            "lsmooth/tasks/plan.py": SMALL,
            "cli/train.py": "import torch",
        },
        "torch",
        {"lsmooth.cli.info"},
    ),
    "a long function": ({"cli/a.py": LONG_FUNCTION}, "function", {"cli/a.py:long"}),
    "a long method": (
        {"cli/a.py": "class A:\n    class B:\n" + LONG_FUNCTION.replace("def", "        async def", 1)
         .replace("    pass", "            pass")},
        "function",
        {"cli/a.py:A.B.long"},
    ),
    "a long class": ({"figures/a.py": LONG_CLASS}, "class", {"figures/a.py:Long"}),
    "a long module": ({"lsmooth/a.py": SMALL * 451}, "module", {"lsmooth/a.py"}),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_each_check_finds_what_it_is_there_for(tmp_path, what):
    files, check, expected = WRONG[what]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert CHECKS[check](read_house(tmp_path)) == expected


RIGHT = {
    "lsmooth/fit/a.py": (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n    import lsmooth.recorder\n    from lsmooth.fit.b import x\n"
        "def f():\n    from lsmooth.fit import b\n"
    ),
    "lsmooth/fit/b.py": "from lsmooth.trace import reader\n",
    "lsmooth/trace/reader.py": "x = 1\n" * 450,
    "lsmooth/recorder.py": "import torch\nimport lsmooth.trace.reader\n",
    "cli/plot.py": LONG_FUNCTION.replace("    pass\n", "", 1) + "import lsmooth.figures\n",
    "figures/__init__.py": LONG_CLASS.replace("    x = 1\n", "", 1),
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_checks_find_nothing_where_nothing_is_wrong(tmp_path, check):
    for name, text in RIGHT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert CHECKS[check](read_house(tmp_path)) == set()

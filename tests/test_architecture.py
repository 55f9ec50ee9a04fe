"""The house keeps its shape: who may import whom, what the core must not do, and that importing does nothing.

Each check is a function from a source tree to the list of its violations, so that every check can be shown to fail on
a tree with a planted fault. They read the code; only the two checks of what an import does run it, in a new process.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "headgate"

# A room may import what stands in a line above its own; rooms in one line are strangers to each other.
LAYERS = (
    ("core",),
    ("ports",),
    ("runtime", "adapters", "testing"),
    ("compose",),
    ("__init__",),  # the public names: `import headgate`, `from headgate import open_manager`
    ("gateway", "dashboard", "sim"),
    ("cli",),  # `headgate serve` and `headgate run` start the gateway (decision 0009)
    ("__main__",),
)
WITHOUT_THIRD_PARTIES = ("__init__", "core", "ports", "runtime")
WITHOUT_UNREADABLE_IMPORTS = ("core", "ports", "runtime")
FORBIDDEN_MODULES = {
    "core": (
        *("time", "sched"),
        *("random", "secrets", "uuid"),
        *("os", "sys", "io", "pathlib", "tempfile", "shutil", "glob", "fileinput", "mmap", "sqlite3", "dbm", "shelve"),
        *("socket", "ssl", "select", "selectors", "socketserver", "http", "urllib.request", "smtplib", "ftplib"),
        *("asyncio", "threading", "concurrent", "multiprocessing", "queue", "contextvars", "signal", "subprocess"),
        *("logging", "importlib", "ctypes", "atexit"),
    ),
    "runtime": ("sqlite3", "http", "urllib.request"),
}
CORE_FORBIDDEN_NAMES = frozenset({"open", "print", "input", "exec", "eval", "compile", "breakpoint", "__import__"})
CORE_FORBIDDEN_CLOCKS = frozenset(
    {"datetime.datetime.now", "datetime.datetime.today", "datetime.datetime.utcnow", "datetime.date.today"}
)
IMPORT_FUNCTIONS = frozenset(
    {"importlib.import_module", "importlib.__import__", "__import__", "builtins.__import__"},
)
MAX_LINES = 450
NAMES_THAT_SAY_NOTHING = re.compile(r"(utils?|helpers?|common|base|misc|manager\d+)")
HEAVY_FOR_A_FACADE = ("asyncio", "sqlite3", "ssl", "http", "multiprocessing")
IMPORT_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Module:
    path: Path
    name: str
    room: str
    tree: ast.Module
    lines: int
    known_as: dict[str, str]  # what a name in this file stands for: "dt" -> "datetime.datetime"

    @property
    def package(self) -> str:
        return self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]


class Import(NamedTuple):
    target: str | None  # dotted, with the imported name at its end; None when only the running program knows it
    line: int


def read_modules(root: Path) -> Iterator[Module]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        inside = parts[:-1] if parts[-1] == "__init__" else parts
        name = ".".join((root.name, *inside))
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, str(path))
        yield Module(path, name, parts[0], tree, len(text.splitlines()), names_bound_by_imports(tree))


def names_bound_by_imports(tree: ast.Module) -> dict[str, str]:
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = first_part(alias.name)
                bound[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return bound


def read_imports(module: Module) -> Iterator[Import]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            source = resolve("." * node.level + (node.module or ""), module.package)
            for alias in node.names:
                yield Import(f"{source}.{alias.name}", node.lineno)
        elif isinstance(node, ast.Call) and full_name(node.func, module) in IMPORT_FUNCTIONS:
            yield Import(target_of_call(node, module), node.lineno)


def resolve(target: str, package: str) -> str:
    level = len(target) - len(target.lstrip("."))
    if level == 0:
        return target
    parents = package.split(".")[: len(package.split(".")) - (level - 1)]
    return ".".join([*parents, *filter(None, [target[level:]])])


def target_of_call(call: ast.Call, module: Module) -> str | None:
    given = dict(zip(("name", "package"), call.args, strict=False)) | {word.arg: word.value for word in call.keywords}
    target = literal(given.get("name"))
    return None if target is None else resolve(target, literal(given.get("package")) or module.package)


def literal(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def full_name(node: ast.expr, module: Module) -> str | None:
    """Give what a name or a chain of attributes stands for, imports under another name undone."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([module.known_as.get(node.id, node.id), *reversed(attributes)])


def first_part(target: str) -> str:
    return target.partition(".")[0]


def room_of(target: str, package: str) -> str | None:
    parts = target.split(".")
    if parts[0] != package:
        return None
    known = len(parts) > 1 and any(parts[1] in layer for layer in LAYERS)
    return parts[1] if known else "__init__"


def layer_of(room: str) -> int | None:
    return next((number for number, layer in enumerate(LAYERS) if room in layer), None)


def is_third_party(target: str, package: str) -> bool:
    return first_part(target) not in {*sys.stdlib_module_names, package}


def is_within(target: str, forbidden: str) -> bool:
    return target == forbidden or target.startswith(f"{forbidden}.")


def violation(module: Module, line: int, what: str) -> str:
    return f"{module.path}:{line}: {what}"


def check_layers(root: Path) -> list[str]:
    found = []
    for module in read_modules(root):
        own_layer = layer_of(module.room)
        if own_layer is None:
            found.append(violation(module, 1, f"the room {module.room} is not in the table of layers"))
            continue
        for target, line in read_imports(module):
            room = None if target is None else room_of(target, root.name)
            layer = None if room is None else layer_of(room)
            if layer is not None and room != module.room and layer >= own_layer:
                found.append(violation(module, line, f"{module.room} must not import {target} of {room}"))
    return found


def check_foreign_modules(root: Path) -> list[str]:
    found = []
    for module in read_modules(root):
        forbidden = FORBIDDEN_MODULES.get(module.room, ())
        for target, line in read_imports(module):
            if target is None:
                if module.room in WITHOUT_UNREADABLE_IMPORTS:
                    found.append(violation(module, line, f"{module.room} imports what no reader can see"))
            elif module.room in WITHOUT_THIRD_PARTIES and is_third_party(target, root.name):
                found.append(violation(module, line, f"{module.room} must not import the third party {target}"))
            elif any(is_within(target, name) for name in forbidden):
                found.append(violation(module, line, f"{module.room} must not import {target}"))
    return found


def check_core_is_pure(root: Path) -> list[str]:
    found = []
    for module in read_modules(root):
        if module.room != "core":
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.AsyncFunctionDef):
                found.append(violation(module, node.lineno, f"core must not wait: async def {node.name}"))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in CORE_FORBIDDEN_NAMES:
                found.append(violation(module, node.lineno, f"core must not use {node.id}"))
            elif isinstance(node, ast.Attribute) and full_name(node, module) in CORE_FORBIDDEN_CLOCKS:
                found.append(violation(module, node.lineno, f"core must not read a clock: {full_name(node, module)}"))
    return found


def check_sizes(root: Path) -> list[str]:
    return [
        violation(module, module.lines, f"{module.lines} lines, at most {MAX_LINES}: split it by what it knows")
        for module in read_modules(root)
        if module.lines > MAX_LINES
    ]


def check_names(root: Path) -> list[str]:
    return [
        violation(module, 1, f"the name {part} does not say what it knows")
        for module in read_modules(root)
        for part in module.path.relative_to(root).with_suffix("").parts
        if NAMES_THAT_SAY_NOTHING.fullmatch(part)
    ]


# Imports each module as the first of its package, so that it cannot lean on what another one happened to load.
WATCH_IMPORTS = r"""
import importlib, io, json, os, sys, threading

parent, package, *names = sys.argv[1:]
root = os.path.join(parent, package) + os.sep
sys.path.insert(0, parent)
importing, found = "", {}
EVENTS = (
    "socket.", "subprocess.Popen", "_thread.start_", "sqlite3.connect", "shutil.", "tempfile.", "os.putenv",
    "os.unsetenv", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chdir", "os.system", "os.posix_spawn", "os.fork", "os.exec", "signal.",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def place(stop_at_imports):
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(root):
            return f"{file}:{frame.f_lineno}"
        if stop_at_imports and file.startswith("<frozen importlib"):
            return None
        frame = frame.f_back
    return None

def watch(event, arguments):
    opens_for_writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
    if importing and (opens_for_writing or event.startswith(EVENTS)):
        shown = arguments[0] if event == "open" else ""
        found[f"{place(False) or importing}: importing {importing} did {event} {shown}".rstrip()] = None

class WatchedEnviron(type(os.environ)):
    # What another package reads in its own module body is its own affair; what it reads on our call is ours.
    def __getitem__(self, key):
        where = place(True)
        if importing and where:
            found[f"{where}: importing {importing} read the environment: {key}"] = None
        return super().__getitem__(key)

    def __iter__(self):
        where = place(True)
        if importing and where:
            found[f"{where}: importing {importing} read the environment"] = None
        return super().__iter__()

watched = WatchedEnviron.__new__(WatchedEnviron)
watched.__dict__.update(os.environ.__dict__)
os.environ = watched
sys.addaudithook(watch)
output, sys.stdout = sys.stdout, io.StringIO()
for name in names:
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == package]:
        del sys.modules[loaded]
    importing = name
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        found[f"{name}: cannot be imported: {type(error).__name__}: {error}"] = None
    if sys.stdout.getvalue():
        found[f"{name}: importing it printed {sys.stdout.getvalue()!r}"] = None
        sys.stdout = io.StringIO()
importing = ""
if threading.active_count() > 1:
    found[f"{package}: importing its modules left threads behind"] = None
json.dump(list(found), output)
output.flush()
"""

LIST_WHAT_THE_FACADE_LOADS = r"""
import json, sys

parent, package = sys.argv[1:]
sys.path.insert(0, parent)
before = set(sys.modules)
__import__(package)
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""


def run_python(script: str, *arguments: str) -> list[str]:
    # -I shuts out the caller's environment and folder; -B keeps Python itself from writing caches.
    command = [sys.executable, "-I", "-B", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer, list)
    return [str(item) for item in answer]


def check_importing_does_nothing(root: Path) -> list[str]:
    return run_python(WATCH_IMPORTS, str(root.parent), root.name, *(module.name for module in read_modules(root)))


def check_facade_is_light(root: Path) -> list[str]:
    return [
        f"{root}: import {root.name} also loads {name}"
        for name in run_python(LIST_WHAT_THE_FACADE_LOADS, str(root.parent), root.name)
        if is_third_party(name, root.name) or name in HEAVY_FOR_A_FACADE
    ]


CHECKS: tuple[Callable[[Path], list[str]], ...] = (
    check_layers,
    check_foreign_modules,
    check_core_is_pure,
    check_sizes,
    check_names,
    check_importing_does_nothing,
    check_facade_is_light,
)


@pytest.mark.parametrize("check", CHECKS)
def test_headgate_keeps_the_rule(check: Callable[[Path], list[str]]) -> None:
    assert check(SOURCE) == []


THREAD_THAT_STAYS = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"

# What each check must find: a small tree with one fault, and a part of what is to be said of it.
PLANTED = [
    (check_layers, {"core/a.py": "import headgate.runtime.lanes"}, "core must not import headgate.runtime.lanes"),
    (check_layers, {"core/a.py": "from headgate import ports"}, "of ports"),
    (check_layers, {"core/a.py": "from headgate import open_manager"}, "of __init__"),
    (check_layers, {"core/a.py": "from .. import runtime"}, "of runtime"),
    (check_layers, {"core/deep/a.py": "from ...adapters.memory import Store"}, "headgate.adapters.memory.Store"),
    (check_layers, {"core/deep/__init__.py": "from ...adapters import memory"}, "of adapters"),
    (check_layers, {"runtime/a.py": "def f():\n    from headgate.adapters import memory"}, "a.py:2: runtime must not"),
    (check_layers, {"adapters/a.py": "class A:\n    from headgate.testing import run"}, "of testing"),
    (check_layers, {"ports.py": "if TYPE_CHECKING:\n    from headgate.runtime import calls"}, "of runtime"),
    (check_layers, {"runtime/a.py": "import importlib\nimportlib.import_module('headgate.compose')"}, "of compose"),
    (check_layers, {"runtime/a.py": "import importlib as i\ni.import_module('..sim', __package__)"}, "of sim"),
    (check_layers, {"runtime/a.py": "from importlib import import_module as f\nf(name='headgate.cli')"}, "of cli"),
    (check_layers, {"runtime/a.py": "__import__('headgate.gateway')"}, "of gateway"),
    (check_layers, {"compose.py": "from headgate.gateway import serve"}, "compose must not import"),
    (check_layers, {"gateway/a.py": "from headgate.dashboard import page"}, "of dashboard"),
    (check_layers, {"cellar/a.py": ""}, "the room cellar is not in the table"),
    (check_foreign_modules, {"core/a.py": "import msgspec"}, "core must not import the third party msgspec"),
    (check_foreign_modules, {"ports.py": "from msgspec import Raw"}, "the third party msgspec.Raw"),
    (check_foreign_modules, {"runtime/a.py": "def f():\n    import rich.table"}, "the third party rich.table"),
    (check_foreign_modules, {"runtime/a.py": "import sqlite3"}, "runtime must not import sqlite3"),
    (check_foreign_modules, {"runtime/a.py": "from http.client import HTTPConnection"}, "http.client.HTTPConnection"),
    (check_foreign_modules, {"runtime/a.py": "from urllib import request"}, "urllib.request"),
    (check_foreign_modules, {"runtime/a.py": "import importlib\nimportlib.import_module(name)"}, "no reader can see"),
    *((check_foreign_modules, {"core/a.py": f"import {name}"}, name) for name in FORBIDDEN_MODULES["core"]),
    (check_core_is_pure, {"core/a.py": "async def f(): ..."}, "core must not wait: async def f"),
    *((check_core_is_pure, {"core/a.py": f"f = {name}"}, name) for name in sorted(CORE_FORBIDDEN_NAMES)),
    (check_core_is_pure, {"core/a.py": "import datetime\ndatetime.datetime.now()"}, "datetime.datetime.now"),
    (check_core_is_pure, {"core/a.py": "from datetime import datetime as d\nd.utcnow()"}, "datetime.datetime.utcnow"),
    (check_core_is_pure, {"core/a.py": "import datetime as d\nf = d.datetime.today"}, "datetime.datetime.today"),
    (check_core_is_pure, {"core/a.py": "from datetime import date\ndate.today()"}, "datetime.date.today"),
    (check_sizes, {"cli/a.py": "\n" * MAX_LINES}, "451 lines, at most 450"),
    (check_names, {"runtime/utils.py": ""}, "the name utils"),
    (check_names, {"gateway/helpers/a.py": ""}, "the name helpers"),
    (check_names, {"runtime/manager2.py": ""}, "the name manager2"),
    (check_importing_does_nothing, {"core/a.py": "open(__file__ + '.log', 'w').close()"}, "a.py:1: importing headgate"),
    (check_importing_does_nothing, {"cli/a.py": "import socket\nsocket.socket().close()"}, "did socket.__new__"),
    (check_importing_does_nothing, {"cli/a.py": "import subprocess\nsubprocess.run(['true'])"}, "subprocess.Popen"),
    (check_importing_does_nothing, {"cli/a.py": "import os\nos.environ['A'] = 'b'"}, "did os.putenv"),
    (
        check_importing_does_nothing,
        {"cli/a.py": "import os\nos.getenv('HOME')"},
        "a.py:2: importing headgate.cli.a read",
    ),
    (check_importing_does_nothing, {"cli/a.py": "import os\n'CI' in os.environ"}, "read the environment: CI"),
    (check_importing_does_nothing, {"cli/a.py": "import os\ndict(os.environ)"}, "read the environment"),
    (check_importing_does_nothing, {"cli/a.py": "import os.path\nos.path.expanduser('~')"}, "environment: HOME"),
    (check_importing_does_nothing, {"cli/a.py": "import sqlite3\nsqlite3.connect(':memory:')"}, "sqlite3.connect"),
    (check_importing_does_nothing, {"cli/a.py": THREAD_THAT_STAYS}, "left threads behind"),
    (check_importing_does_nothing, {"cli/a.py": "print('hello')"}, "importing it printed 'hello"),
    (
        check_importing_does_nothing,
        {"cli/a.py": "raise SystemExit(3)"},
        "headgate.cli.a: cannot be imported: SystemExit",
    ),
    (
        check_importing_does_nothing,
        {"cli/a.py": "from headgate.cli.b import g\nf = 1", "cli/b.py": "from headgate.cli.a import f\ng = 1"},
        "cannot be imported: ImportError",
    ),
    (check_facade_is_light, {"__init__.py": "import msgspec"}, "also loads msgspec"),
    (check_facade_is_light, {"__init__.py": "import headgate.cli.a", "cli/a.py": "import asyncio"}, "asyncio"),
]

# What looks like a fault and is none.
SOUND = {
    "__init__.py": "import importlib\ndef at_need(name):\n    return importlib.import_module(name)",
    "core/limits.py": (
        "from datetime import UTC, datetime\n"
        "from . import amounts\n"
        "from .amounts import one\n"
        "def at(now_s, sheet):\n    sheet.open()\n    return datetime.fromtimestamp(now_s, UTC)"
    ),
    "core/amounts.py": "one = 1",
    "ports.py": "from headgate.core import amounts\nfrom .core.amounts import one",
    "runtime/lanes.py": "import asyncio\nfrom headgate import core, ports\nfrom urllib.parse import urlsplit",
    "adapters/memory.py": "import sqlite3, msgspec\nfrom ..core.amounts import one",
    "compose.py": "from headgate.runtime import lanes\nfrom headgate.adapters import memory",
    "cli/main.py": "import headgate, os\nfrom headgate import compose\ndef main():\n    return os.environ",
    "__main__.py": "from headgate.cli.main import main",
}


def plant(folder: Path, files: dict[str, str]) -> Path:
    root = folder / "headgate"
    for name, text in {"__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(("check", "files", "said"), PLANTED)
def test_a_planted_fault_is_found(
    check: Callable[[Path], list[str]], files: dict[str, str], said: str, tmp_path: Path
) -> None:
    found = check(plant(tmp_path, files))
    assert any(said in what for what in found), found


@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_tree_is_not_blamed(check: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert check(plant(tmp_path, SOUND)) == []

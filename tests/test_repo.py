"""The habits of this repository, and its budgets: what a tool that reads one file does not see."""

import ast
import re
import tomllib
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

import atoll

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "atoll").rglob("*.py"))
PAGES = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("docs/decisions/*")))
TEXTS = [
    path
    for folder in ("src", "tests", "docs", "configs", "benchmarks", ".ci")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".md", ".toml", ".sh", ""}
    and path.is_file()
    and path != Path(__file__)
    and "_build" not in path.parts
] + [ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("*.md")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

MADE_BY_DOCS = ("reference/config.md", "reference/messages.md")  # by `make docs`: docs/generate.py
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_SOURCE_LINES = 43_000  # all of src/
VAGUE = re.compile(r"(Manager|Helper|Handler|Utils?|Base)$")
TERMS = re.split(
    r",\s+",
    """run, host, peer, agent, trainer, inner step, round, fragment, slice, reducer, contribution,
    update, commit, lease, journal, roster, blob, state, member, plan, share, sample, codec, invite,
    carry, pseudo-gradient""",
)


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Yield each node of these kinds in src/, with its place for a person to find."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds):
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node


def matches(pattern: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate(lines_of(path), start=1)
        if re.search(pattern, line)
    ]


# --- budgets -------------------------------------------------------------------------------------


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): len(lines_of(path)) for path in SOURCES}
    assert {name: n for name, n in lengths.items() if n > MAX_FILE_LINES} == {}
    assert sum(lengths.values()) <= MAX_SOURCE_LINES


def test_functions_are_short():
    too_long = [
        place
        for place, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert too_long == []


def test_names_say_what_a_thing_is():
    classes = [
        f"{place}: {node.name}"
        for place, node in nodes(ast.ClassDef)
        if isinstance(node, ast.ClassDef) and VAGUE.search(node.name)
    ]
    modules = [path for path in SOURCES if re.fullmatch("utils?|common|helpers?|base", path.stem)]
    assert (classes, modules) == ([], [])


# --- habits --------------------------------------------------------------------------------------


def test_only_the_command_line_prints():
    prints = [
        place
        for place, node in nodes(ast.Call)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and not place.startswith("src/atoll/cli/")
    ]
    assert prints == []


# What Windows, or all but Linux, lack or do otherwise: modules, and names of os, signal, ...
OF_SOME_SYSTEMS = re.compile(
    r"""fcntl | resource | pwd | grp | termios | tty | pty | posix | syslog | msvcrt | winreg
    | ctypes
    | SIGHUP | SIGKILL | SIGTERM | SIGSTOP | SIGCONT | SIGUSR[12] | SIGCHLD | SIGQUIT | SIGALRM
    | SIGPIPE | CTRL_\w+ | pthread_\w+ | add_signal_handler | setitimer | alarm | sigwait\w*
    | fork\w* | posix_\w+ | kill | killpg | nice | [gs]etpriority | sched_\w+ | [gs]ete?[ug]id
    | setsid | getpgid | wait[34] | waitpid | times | uname | getloadavg | sysconf | statvfs
    | mkfifo | mknod | l?chown | fchmod | pread | pwrite\w* | sendfile | fdatasync | openpty
    | start_new_session | preexec_fn | creationflags | STARTUPINFO | pass_fds | process_group
    | AF_UNIX | open_unix_connection | start_unix_server | create_unix_\w+ | fromshare
    | SO_REUSEPORT | TCP_NOTSENT_LOWAT | TCP_CONGESTION | TCP_USER_TIMEOUT | TCP_QUICKACK
    | MAP_SHARED | MAP_PRIVATE | PROT_\w+ | MADV_\w+""",
    re.VERBOSE,
)
STARTING = {"start_new_session", "preexec_fn", "creationflags", "pass_fds", "process_group"}
SYSTEM_MODULES = {"os", "signal", "socket", "asyncio", "loop", "subprocess", "mmap"}


def calls_of_some_systems(path: Path) -> Iterator[str]:
    """Yield what the module uses that only some operating systems have."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                used = [name.name for name in names]
            case ast.ImportFrom(module=str(module), names=names):
                used = [module, *(n.name for n in names if module in SYSTEM_MODULES)]
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in SYSTEM_MODULES:
                used = [name]
            case ast.Attribute(value=ast.Name(id="sys"), attr="platform"):
                yield f"{path.relative_to(ROOT)}:{node.lineno}: sys.platform"
                continue
            case ast.keyword(arg=str(name)):
                used = [name] if name in STARTING else []
            case _:
                continue
        found = [name for name in used if OF_SOME_SYSTEMS.fullmatch(name)]
        yield from (f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {n}" for n in found)


def test_calls_that_only_some_systems_have_stand_in_one_module():
    system = ROOT / "src" / "atoll" / "system.py"
    assert [use for path in SOURCES if path != system for use in calls_of_some_systems(path)] == []
    assert {"resource", "SIGTERM", "nice", "fromshare"} <= {
        use.rpartition(" ")[2] for use in calls_of_some_systems(system)
    }


def test_nothing_is_left_for_later():
    assert matches(r"\b(TODO|FIXME|XXX)\b") == []


def test_no_path_of_one_machine_is_in_a_file():
    assert matches(r"(?<![\w.])/(work|root|farm|Users)/|/home/[a-z]+/") == []


def test_every_module_says_what_it_is_for():
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert silent == []


# --- documentation -------------------------------------------------------------------------------


@pytest.mark.parametrize("term", TERMS)
def test_the_glossary_has_the_term(term: str):
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert re.search(rf"(?m)^- \*\*{term}\*\*:", glossary)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(page: Path):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"https?://|mailto:", target)]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert [target for target in missing if target not in MADE_BY_DOCS] == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    names = [path.relative_to(ROOT / "docs") for path in sorted((ROOT / "docs").rglob("*.md"))]
    pages = [
        str(name.with_suffix("")) for name in names if not {"_build", "reference"} & set(name.parts)
    ]
    assert [page for page in pages if page != "index" and page not in index] == []


def test_decisions_are_numbered_without_a_gap():
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert numbers == [number for number, _ in zip(count(1), numbers, strict=False)]


def test_the_newest_entry_of_the_changelog_is_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"(?m)^## (\S+)", changelog)
    assert newest
    assert newest[1] == PROJECT["version"] == atoll.__version__


# --- dependencies --------------------------------------------------------------------------------


def names_of(requirements: list[str]) -> list[str]:
    return [re.split(r"[^\w-]", requirement)[0] for requirement in requirements]


def test_every_dependency_has_a_reason():
    reasons = (ROOT / "docs" / "decisions" / "0002-dependencies.md").read_text(encoding="utf-8")
    extras = PROJECT["optional-dependencies"]
    needed = [*PROJECT["dependencies"], *extras["train"], *extras["demo"], *extras["huggingface"]]
    needed += extras["postgres"]
    assert [name for name in names_of(needed) if f"**{name}**" not in reasons] == []


def test_every_dependency_that_make_installs_has_one_version():
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = re.findall(r"(?m)^([\w-]+)==", constraints)
    groups = [group for name, group in PROJECT["optional-dependencies"].items()]
    installed = {*names_of(PROJECT["dependencies"]), *(n for g in groups for n in names_of(g))}
    assert installed - {"datasets"} == set(pinned)
    assert len(pinned) == len(set(pinned))

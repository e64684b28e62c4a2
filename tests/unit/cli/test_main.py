import ast
import errno
import subprocess
import sys
from pathlib import Path

import pytest

import atoll.cli
from atoll import __version__
from atoll.cli.commands import COMMANDS, WITH_TORCH, lack_of, report
from atoll.errors import ConfigError


def test_the_help_names_every_command_and_what_it_does(atoll):
    for arguments in ((), ("--help",)):
        outcome = atoll(*arguments)
        assert outcome.code == 0
        for name, summary in COMMANDS.items():
            assert name in outcome.out
            assert summary.split()[0] in outcome.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help(atoll, name):
    outcome = atoll(name, "--help")
    assert outcome.code == 0
    assert f"Usage: atoll {name}" in outcome.out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_the_function_of_its_name(name):
    path = Path(atoll.cli.__file__).with_name(f"{name}.py")
    functions = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]
    assert name in {function.name for function in functions}


def test_lines_of_a_help_end_where_the_terminal_does(atoll, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = atoll("chat", "--help").out.splitlines()
    assert any("it downloads the model, and whatever is committed" in line for line in lines)


def test_neither_the_help_nor_a_host_imports_anything_heavy():
    code = (
        "import sys\nfrom atoll.cli.main import main\nsys.argv = ['atoll', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numba', 'numpy', 'pyarrow'} & set(sys.modules)))\n"
        "import atoll.cli.host\n"  # which runs no codec, and waits for nothing that is compiled
        "print(sorted({'torch', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["[]", "[]"]


def test_ctrl_c_ends_it_in_order_also_while_it_is_still_being_imported():
    code = (
        "import signal, sys\n"
        "class Impatient:\n    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer': signal.raise_signal(signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Impatient())\nsys.argv = ['atoll', '--help']\n"
        "from atoll.cli.main import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "stopped\n")


@pytest.mark.parametrize("name", sorted(WITH_TORCH))
def test_who_has_no_torch_hears_how_to_get_it(atoll, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    outcome = atoll(name, "x")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: atoll {name} needs torch")
    assert "pip install 'atoll[train]'" in outcome.err


def test_the_version(atoll):
    outcome = atoll("--version")
    assert (outcome.code, outcome.out) == (0, f"atoll {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (("hots",), "error: No such command 'hots'", "hint: see: atoll --help"),
        (
            ("status", "x", "--jsn"),
            "error: No such option: --jsn",
            "hint: see: atoll status --help",
        ),
        (("export", "x"), "error: Missing argument 'out'", "hint: see: atoll export --help"),
        (("new", "x", "--peers", "0"), "error: Invalid value for '--peers'", "atoll new --help"),
    ],
)
def test_wrong_arguments_are_an_error_like_any_other(atoll, arguments, error, hint):
    outcome = atoll(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith(error)
    assert hint in outcome.err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("host", "x", "--days", "inf"), "--days inf"),
        (("host", "x", "--days", "nan"), "--days nan"),
        (("admin", "x", "invite", "--days", "0"), "--days 0"),
        (("admin", "x", "invite", "--uses", "0"), "'--uses'"),
        (("join", "--max-upload", "nan"), "nan Mb/s"),
        (("join", "--max-download", "inf"), "inf Mb/s"),
        (("join", "--max-upload", "0.000003"), "3e-06 Mb/s is less than a byte per second"),
    ],
)
def test_numbers_that_are_none_are_wrong_arguments(atoll, arguments, error):
    outcome = atoll(*arguments)
    assert outcome.code == 2
    assert error in outcome.err


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        (("--machines", "2"), "several machines need a --site", "10.0.0.1:7779"),
        (("--machines", "2", "--site", "10.0.0.1"), "not an address and a port", "10.0.0.1:7779"),
        (("--machines", "2", "--site", "no.invalid:1"), "no IPv4 address", "--site takes"),
        (("--site", "10.0.0.1:7779"), "is for the other machines of a peer", "--machines 2"),
        (("--hours", "8"), "these are no hours: 8", "8:30-17"),
    ],
)
def test_what_a_machine_cannot_give_is_said_before_its_invite_is_looked_at(
    atoll, options, error, hint
):
    outcome = atoll("join", "no invite", *options)
    assert outcome.code == 2
    assert error in outcome.err.splitlines()[0]
    assert hint in outcome.err.splitlines()[1]


def test_a_passphrase_that_is_no_text_is_an_error(atoll, tmp_path):
    (tmp_path / "passphrase").write_bytes(b"\xff")
    (tmp_path / "sealed").write_bytes(b"")
    outcome = atoll(
        *("keys", tmp_path / "new", "--import", tmp_path / "sealed"),
        *("--passphrase-file", tmp_path / "passphrase"),
    )
    assert outcome.code == 2
    assert "is no text" in outcome.err


@pytest.mark.parametrize(
    "command", [("host",), ("verify",), ("status",), ("keys", "--export", "x")]
)
def test_another_file_than_its_run_toml_does_not_stand_for_a_run(atoll, tmp_path, command):
    (tmp_path / "run.toml").write_text("")
    (tmp_path / "other.toml").write_text("")
    name, *options = command
    outcome = atoll(name, tmp_path / "other.toml", *options)
    assert outcome.code == 2
    assert "other.toml is not the run.toml of a run" in outcome.err
    assert "passphrase" not in outcome.err


def test_whoever_trains_alone_may_name_any_file_that_is_there(atoll, tmp_path):
    outcome = atoll("train", tmp_path / "mine.toml")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {tmp_path / 'mine.toml'}: no such file")


@pytest.mark.parametrize("command", ["status", "verify"])
def test_what_is_asked_of_a_peers_directory_hears_what_fits_there(atoll, tmp_path, command):
    (tmp_path / "run.json").write_text("{}")
    outcome = atoll(command, tmp_path)
    assert outcome.code == 2
    assert f"{tmp_path} is the directory of a peer" in outcome.err
    assert f"atoll follow {tmp_path}" in outcome.err
    assert f"atoll join --dir {tmp_path}" in outcome.err


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(atoll, tmp_path):
    (tmp_path / "events.jsonl").mkdir()
    outcome = atoll("follow", tmp_path)
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: {tmp_path / 'events.jsonl'}: ")


def test_an_error_is_printed_as_it_is_whatever_it_quotes(capsys):
    report(ConfigError("data.sources[0]: [/bold] [red]x", hint="write [[data.sources]] above each"))
    assert capsys.readouterr().err == (
        "error: data.sources[0]: [/bold] [red]x\nhint: write [[data.sources]] above each\n"
    )


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "no more files may be opened"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "there is not enough memory"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("can't start new thread"), "the system gives us no further thread"),
        (PermissionError(errno.EACCES, "Permission denied", "run.toml"), "run.toml: Permission"),
    ],
)
def test_what_the_system_does_not_give_is_one_error_that_says_what_to_do(error, says):
    said = lack_of(error)
    assert said is not None
    assert str(said).startswith(says)
    assert said.hint


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "Bad file descriptor"), RuntimeError("x")])
def test_an_error_that_is_not_of_the_system_is_a_bug(error):
    assert lack_of(error) is None


@pytest.mark.parametrize(
    "raised",
    [
        "Leaves(error)",
        "loop.call_soon(throw, error)\nloop.call_soon(loop.stop)\nloop.run_forever()",
    ],
    ids=["in a finalizer", "in an event loop"],
)
def test_who_lacks_memory_where_nobody_hears_of_it_ends_and_says_so(raised):
    code = (
        "import asyncio, sys\nfrom atoll.cli.main import main\nsys.argv = ['atoll', '--help']\n"
        "def throw(error): raise error\n"
        "class Leaves:\n    def __init__(self, error): self.error = error\n"
        "    def __del__(self): raise self.error\n"
        "try: main()\nexcept SystemExit: pass\n"
        "loop = asyncio.new_event_loop()\n"
        f"error = ValueError('no matter')\n{raised}\nprint('goes on', flush=True)\n"
        f"error = MemoryError()\n{raised}\nprint('hangs', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no matter" in done.stderr
    assert "error: there is not enough memory" in done.stderr
    assert "goes on" in done.stdout
    assert "hangs" not in done.stdout

"""The command line: one small file per command, errors with a hint, exit codes with a meaning.

0 done, or left cleanly    1 this machine or the run cannot go on    2 wrong arguments or config
"""

import errno
import logging
import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from inspect import cleandoc
from typing import Annotated, Any

import typer
from rich.markup import escape

from atoll import __version__, system
from atoll.cli.show import console, errors
from atoll.errors import AtollError, ConfigError, RunError
from atoll.sentences import plain

# Each is the function of its name in the module of its name.
COMMANDS = {
    "demo": "Train a small model with a host and three peers, all on this machine.",
    "new": "Begin a run: write its run.toml, every key explained.",
    "host": "Serve a run: admit peers, decide rounds, keep the journal.",
    "join": "Train in a run with this machine.",
    "assist": "Give this machine's devices to a peer on another machine of the same site.",
    "doctor": "Say whether this machine can train, in which runs, and what to mend.",
    "pause": "Let this machine's peers rest: no round waits for them.",
    "resume": "Let this machine's peers go on.",
    "plan": "Predict what a run would cost on a fleet, and what will hurt.",
    "admin": "Pause a run that is served, remove a peer, make an invite, stop the host.",
    "status": "Show how a run stands.",
    "follow": "Tell what happens in a run as it happens, in words or as curves elsewhere.",
    "generate": "Let the newest model of a run write.",
    "chat": "Write with the newest model of a run, while it trains on.",
    "serve": "Offer a model to programs, by OpenAI's API for completions.",
    "eval": "Say how well the newest model of a run predicts text it has not seen.",
    "export": "Write the newest model of a run as a Hugging Face folder, or as GGUF.",
    "verify": "Prove that a run is what its journal says.",
    "takeover": "Let a standby host lead the run now.",
    "keys": "Bring a run's keys to the machine of a standby host.",
    "train": "Train alone, without a network: what a run is compared with.",
}
WITH_TORCH = {
    "demo",
    "assist",
    "join",
    "doctor",
    "generate",
    "chat",
    "serve",
    "eval",
    "export",
    "train",
}
INTERRUPTED = 130  # what typer makes of Ctrl-C
NO_MEMORY = RunError(
    "there is not enough memory",
    hint="see what else runs here, and whether `ulimit -v` or a control group limits it",
)
NO_THREAD = RunError(
    "the system gives us no further thread",
    hint="see what `ulimit -u`, `ulimit -v` or a control group allow",
)


def run(arguments: list[str]) -> int:
    """Run the command of these arguments, and return the exit code.

    Raises:
        KeyboardInterrupt: its user, or who ends services, wanted it to end.
    """
    arguments = arguments or ["--help"]
    system.write_what_can_be_written(sys.stdout, sys.stderr)
    system.end_as_with_ctrl_c()
    sys.unraisablehook = _note_unraisable
    logging.getLogger("asyncio").addFilter(_note_logged)
    called = next((word for word in arguments if not word.startswith("-")), "")
    try:
        if called in WITH_TORCH and "--help" not in arguments:
            _need_torch(called)
        app = _app(called=called)
        code = int(app(arguments, prog_name="atoll", standalone_mode=False) or 0)
    except AtollError as error:
        report(error)
        return 2 if isinstance(error, ConfigError) else 1
    except (OSError, MemoryError, RuntimeError) as error:
        if (lack := lack_of(error)) is None:
            raise
        report(lack)
        return 1
    except typer.TyperException as error:  # the arguments do not fit the command
        report(ConfigError(error.format_message(), hint=_usage_hint(arguments)))
        return 2
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code


def _need_torch(command: str) -> None:
    """Raise ConfigError where torch is not installed: a host has none, for example."""
    if find_spec("torch") is None:
        raise ConfigError(
            f"atoll {command} needs torch, which is not installed here",
            hint="pip install 'atoll[train]'",
        )


def _note_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    _end_without_memory(unraisable.exc_type)
    sys.__unraisablehook__(unraisable)


def _note_logged(record: logging.LogRecord) -> bool:
    """Look at what an event loop says of an error that no task has; True: it is to be logged."""
    if record.exc_info:
        _end_without_memory(record.exc_info[0])
    return True


def _end_without_memory(kind: type[BaseException] | None) -> None:
    """End the process if it lacked memory where nobody hears of it, and somebody may wait for ever.

    Such as for a thread that could not begin, or for an answer that could not be read.
    """
    if kind is None or not issubclass(kind, MemoryError):
        return
    try:
        report(NO_MEMORY)
        sys.stdout.flush()
    finally:
        os._exit(1)


def lack_of(error: OSError | MemoryError | RuntimeError) -> RunError | None:
    """Return what the system does not give us, and what to do; None: that is not it, but a bug."""
    if isinstance(error, RuntimeError):
        return NO_THREAD if "can't start new thread" in str(error) else None
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        return NO_MEMORY
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return RunError(
            "no more files may be opened",
            hint="raise the limit: ulimit -n 1024, or LimitNOFILE= in a service file",
        )
    if error.filename is None:
        return None  # no file of the user's
    return RunError(f"{error.filename}: {error.strerror}", hint="who may read it, and write?")


def report(error: AtollError) -> None:
    """Print an error for a person; what it quotes may contain anything."""
    errors.print(f"[bold red]error:[/] {_shown(str(error))}", soft_wrap=True)
    if error.hint:
        errors.print(f"[bold]hint:[/] {_shown(error.hint)}", soft_wrap=True)


def _shown(text: str) -> str:
    return "\n".join(escape(plain(line)) for line in text.split("\n"))


def _app(*, called: str) -> typer.Typer:
    """Return the command line. Only the module of the command that is called is imported."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.callback(
        help="Train one language model on many people's machines, over ordinary connections."
    )(_options)
    for name, summary in COMMANDS.items():
        function = _load(name) if name == called else _not_called
        app.command(name, short_help=summary, help=_in_paragraphs(function.__doc__))(function)
    return app


def _in_paragraphs(text: str | None) -> str:
    """Return a docstring with a line for each paragraph, for a terminal of any width."""
    return "\n\n".join(" ".join(each.split()) for each in cleandoc(text or "").split("\n\n"))


def _load(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(import_module(f"atoll.cli.{name}"), name)
    return function


def _not_called() -> None:
    raise AssertionError("another command was called")


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"atoll {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


def _usage_hint(arguments: list[str]) -> str:
    command = next((word for word in arguments if word in COMMANDS), "")
    return f"see: {' '.join(filter(None, ('atoll', command, '--help')))}"

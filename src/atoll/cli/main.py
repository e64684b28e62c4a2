"""The command line: one small file per command, errors with a hint, exit codes that mean something.

0 done, or left cleanly    1 this machine or the run cannot go on    2 the user asked for something wrong
"""

import sys

import typer

from atoll.cli.show import errors
from atoll.errors import AtollError, ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train one language model on many people's machines, over ordinary internet connections.",
)


def _register() -> None:
    from atoll.cli.host import host
    from atoll.cli.join import join

    app.command()(host)
    app.command()(join)


def main() -> None:
    """Run the command of this process's arguments."""
    _register()
    try:
        app(standalone_mode=False)
    except AtollError as error:
        report(error)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        errors.print("stopped")
        sys.exit(0)


def report(error: AtollError) -> None:
    errors.print(f"[bold red]error:[/] {error}", soft_wrap=True)
    if error.hint:
        errors.print(f"[bold]hint:[/] {error.hint}", soft_wrap=True)


if __name__ == "__main__":
    main()

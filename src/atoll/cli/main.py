"""Where the command line begins. Ctrl-C is heard at once, while all the rest is being imported."""

import sys
from contextlib import suppress


def main() -> None:
    """Run the command of this process's arguments."""
    try:
        from atoll.cli.commands import run  # takes most of a second

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        from atoll.system import end_in_peace

        end_in_peace()
        code = 0
        with suppress(OSError):  # nobody reads it any more
            sys.stderr.write("stopped\n")
            sys.stderr.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()

"""The command `minimax2`, before the package is imported: Ctrl-C while it is, is no traceback."""

import sys


def main() -> int:
    """Run minimax2.cli.main(); the exit code, 130 after Ctrl-C."""
    try:
        from minimax2.cli import main as run
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return run()

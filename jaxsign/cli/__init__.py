"""The command line: `jaxsign` and the options that every sweeps/NAME.py shares."""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The command `jaxsign`, imported only now: `import jaxsign` needs the options of scripts alone."""
    from jaxsign.cli.command import main as command

    return command(argv)

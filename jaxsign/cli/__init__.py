"""The command line: `jaxsign` and the options that every sweeps/NAME.py shares."""

from jaxsign.cli.command import main as main

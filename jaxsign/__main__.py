"""`python -m jaxsign`: the command `jaxsign`."""

from jaxsign.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

"""How are moments written: as text of manifests and locks, and in words for people."""

import time
from datetime import UTC, datetime

#: Times of manifests and locks, in UTC.
FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def now() -> str:
    """The current time, as manifests and locks write it."""
    return time.strftime(FORMAT, time.gmtime())


def parse(text: str) -> datetime:
    """The moment that a time of a manifest or lock names.

    Raises:
      ValueError: if it is not written in FORMAT.

    Examples:
      >>> parse("2026-01-31T12:00:00Z")
      datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.timezone.utc)
    """
    return datetime.strptime(text, FORMAT).replace(tzinfo=UTC)


def words(moment: datetime) -> str:
    """A moment for people.

    Examples:
      >>> words(parse("2026-01-31T12:00:00Z"))
      '2026-01-31 12:00:00 UTC'
    """
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"

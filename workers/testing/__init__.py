"""Tests of your own handler: `handle` and `check` in memory, and fixtures for pytest with real brokers.

`workers.pytest_plugin` has the fixtures, which pytest finds where the extra `testing` is installed.
"""

from workers.testing.checks import Effects, check
from workers.testing.handling import Handled, handle, message

__all__ = ["Effects", "Handled", "check", "handle", "message"]

"""Python loads this module when it starts, if its directory is in PYTHONPATH: a worker then has nothing compiled."""

import sys

sys.modules["workers.kafka._fields"] = sys.modules["workers.accounting._stamps"] = None  # type: ignore[assignment]

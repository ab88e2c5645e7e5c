"""The picture of the demo: what cannot be written is said in one line."""

from pathlib import Path

import pytest
from rich.table import Table

from workers.errors import WorkerError
from workers.local.picture import draw


def test_a_full_disk_is_said() -> None:
    with pytest.raises(WorkerError, match="--svg: /dev/full was not written: No space left on device; name a file"):
        draw(Path("/dev/full"), Table("broker"), ["acknowledged 1"])

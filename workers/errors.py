"""The end of a command: its exit code, and the errors that say in one line what to do."""

import enum
import errno

# The system refuses to open another file or socket; ulimit -n is the remedy, whatever was to be opened.
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


class ConfigError(Exception):
    """Something the worker was told cannot be used; the text names it and says what to do."""


class ExitCode(enum.IntEnum):
    """The meanings of a command's exit codes."""

    OK = 0
    FAILED = 1  # something was not delivered, or a fatal Kafka error
    USAGE = 2  # wrong usage or configuration
    LOSS = 3  # a verification found that something acknowledged is not there


class WorkerError(Exception):
    """A worker cannot go on; the text is one line for a person, `code` the exit code."""

    def __init__(self, text: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.code = code


class UndecodableError(Exception):
    """Bytes that are not what the format says; the text says why. No other try would help."""


class UnencodableError(Exception):
    """An object that the format, or the schema, cannot hold; the text says why. No other try would help."""


class RegistryAwayError(Exception):
    """The schema registry does not answer, or says that it cannot now; another try may go well."""


class ClusterError(WorkerError):
    """The embedded cluster cannot be started or a broker does not do what was asked; the text says what to do."""

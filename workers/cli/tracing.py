"""--tracing: OpenTelemetry is imported only where it is asked for."""

from typing import TYPE_CHECKING

from workers.cli.context import Context
from workers.errors import ConfigError

if TYPE_CHECKING:
    from workers.tracing.sdk import Tracing


def start_tracing(context: Context) -> "Tracing":
    """Start OpenTelemetry. Raises ConfigError where it is not installed, or its variables cannot be used."""
    try:
        from workers.tracing.sdk import start
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ConfigError(
            f"{context.origin('tracing')}: OpenTelemetry is not installed; pip install 'kafka-workers[tracing]'"
        ) from None
    return start()

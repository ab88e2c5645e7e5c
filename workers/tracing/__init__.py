"""Spans of messages by OpenTelemetry. Imported with --tracing only: the extra `tracing` may not be installed."""

"""Names of attributes, from the OpenTelemetry semantic conventions for messaging, version 1.44.0, and our own.

They are written out, as OpenTelemetry asks of libraries: its package may rename what is not stable yet.
"""

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
SYSTEM = "messaging.system"
OPERATION_TYPE = "messaging.operation.type"
OPERATION_NAME = "messaging.operation.name"
DESTINATION = "messaging.destination.name"
PARTITION = "messaging.destination.partition.id"
GROUP = "messaging.consumer.group.name"
CLIENT_ID = "messaging.client.id"
OFFSET = "messaging.kafka.offset"
TOMBSTONE = "messaging.kafka.message.tombstone"
BATCH_COUNT = "messaging.batch.message_count"
ERROR_TYPE = "error.type"
# Our events, and their attributes.
RETRY = "kafka_workers.retry"
REJECT = "kafka_workers.reject"
DEAD_LETTER = "kafka_workers.dead_letter"
ISOLATE = "kafka_workers.isolate"
STOP = "kafka_workers.stop"
ATTEMPTS = "kafka_workers.attempts"
PAUSE_S = "kafka_workers.pause_s"
REASON = "kafka_workers.reason"

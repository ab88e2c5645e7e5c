"""Settings of the unit tests."""

from hypothesis import settings

# Where many tests share a processor, how long an example takes says nothing.
settings.register_profile("kafka-workers", deadline=None)
settings.load_profile("kafka-workers")

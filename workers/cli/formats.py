"""Makes codecs of the options that name a format."""

import logging
import time
from functools import partial
from pathlib import Path

from workers.cli.context import Context
from workers.cli.parameters import Format, RegistryOptions
from workers.config import ClientConfig
from workers.errors import ConfigError, RegistryAwayError, UnencodableError, WorkerError
from workers.schemas.codecs import Codec, Codecs, Field, JsonCodec

log = logging.getLogger("workers")
# Between two attempts to reach the registry, and between two warnings that it is unreachable.
PAUSE_S = 0.5
REPEAT_S = 10.0


class CodecMaker:
    """Makes codecs that share one client of the schema registry, which is made when the first of them needs it.

    `auth_timeout_s` is for how long a registry may refuse that has answered before; the files of `options` are read
    again meanwhile.
    """

    def __init__(self, context: Context, config: ClientConfig, options: RegistryOptions, auth_timeout_s: float) -> None:
        self._context = context
        self._config = config
        self._options = options
        self._auth_timeout_s = auth_timeout_s
        self._registry: object = None

    def codecs(self, prefix: str, formats: dict[Field, Format | None], files: dict[Field, Path | None]) -> Codecs:
        """The codecs of the options `--<prefix>key-format` and `--<prefix>value-format`; raises ConfigError where one
        cannot be had.
        """
        made = {
            field: self._codec(f"{prefix}{field}_format", name, field, files.get(field))
            for field, name in formats.items()
        }
        return Codecs(**made)

    def _codec(self, option: str, name: Format | None, field: Field, schema_file: Path | None) -> Codec | None:
        if schema_file is not None and name in (None, "json"):
            origin = self._context.origin(f"{field}_schema_file")
            raise ConfigError(f"{origin} is for --{field}-format avro, protobuf or json-schema; give one of these")
        if name is None:
            return None
        if name == "json":
            return JsonCodec()
        origin = f"{self._context.origin(option)} {name}"
        if "url" not in self._config.settings:
            raise ConfigError(f"{origin} needs a schema registry; give its address with --schema-registry-url")
        try:
            from workers.schemas.registry import Registry, RegistryCodec
        except ImportError:
            raise ConfigError(
                f"{origin} needs the extra 'schemas': pip install 'kafka-workers[schemas]', or an image with it: the "
                "tag X.Y.Z-full of a release, or --build-arg EXTRAS=schemas"
            ) from None
        if not isinstance(self._registry, Registry):
            read_again = partial(self._context.registry_config, self._options)
            self._registry = Registry(self._config, read_again, self._auth_timeout_s)
        return RegistryCodec(self._registry, name, field, schema_file)


def prepare(codecs: Codecs, topic: str, timeout_s: float | None) -> None:
    """Have the schemas of a topic, waiting for the registry as for brokers: for `timeout_s`, or for ever.

    Raises ConfigError where there is none, WorkerError when the time is over.
    """
    began, said = time.monotonic(), float("-inf")
    while True:
        try:
            codecs.prepare(topic)
            return
        except UnencodableError as error:
            raise ConfigError(str(error)) from None
        except RegistryAwayError as error:
            if timeout_s is not None and time.monotonic() - began >= timeout_s:
                raise WorkerError(f"{error}; check --schema-registry-url and that it runs; nothing was sent") from None
            if time.monotonic() - said >= REPEAT_S:
                said = time.monotonic()
                log.warning("%s; still trying", error)
        time.sleep(PAUSE_S)

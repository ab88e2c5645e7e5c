"""Keys and values whose schemas a registry has, with confluent-kafka's serializers. Needs the extra `schemas`.

The bytes are those of every client of Confluent's schema registry: a zero, the schema's id in four bytes, the data.
The client keeps each schema that it has seen, so the registry is asked once for each.
"""

import base64
import binascii
import io
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import fastavro
from confluent_kafka.schema_registry import (
    RegisteredSchema,
    Schema,
    SchemaReference,
    SchemaRegistryClient,
    SchemaRegistryError,
    dual_schema_id_deserializer,
)
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.common._httpx_compat import httpx
from confluent_kafka.schema_registry.common.protobuf import _init_pool
from confluent_kafka.schema_registry.error import OAuthTokenError
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.schema_registry.serde import SchemaId
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.message_factory import GetMessageClass

from workers.config import ClientConfig, read_text
from workers.errors import ConfigError, RegistryAwayError, UndecodableError, UnencodableError
from workers.json_text import parse_json
from workers.kafka.messages import Headers
from workers.schemas.codecs import (
    Field,
    reason_of,
)
from workers.schemas.config import client_properties

log = logging.getLogger("workers")
_Answer = TypeVar("_Answer")
# The registry's names of the formats.
TYPES = {"avro": "AVRO", "protobuf": "PROTOBUF", "json-schema": "JSON"}
_FIELDS = {"key": MessageField.KEY, "value": MessageField.VALUE}
# The subject is TOPIC-key or TOPIC-value; the library's default would ask the registry for it.
_BY_TOPIC = {"subject.name.strategy.type": "TOPIC"}
_LATEST = {**_BY_TOPIC, "auto.register.schemas": False, "use.latest.version": True}
_OWN = {**_BY_TOPIC, "auto.register.schemas": False}
# A misspelt field would be left out.
_STRICT = {"validate.strict.allow.default": True}
_CREDENTIALS = "check --schema-registry-username, its password file and the user's rights"
# It says each request.
logging.getLogger(httpx.__name__).setLevel(logging.WARNING)


class NotFoundError(Exception):
    """The registry has no such schema or subject."""


class InvalidSchemaError(Exception):
    """The registry does not take a schema; the text says why."""


class StrayAnswerError(Exception):
    """A server that is no schema registry has answered; the text says what."""


class Registry:
    """The client of a schema registry, which distinguishes its errors. Any thread may use it.

    A registry that refuses after it has answered is asked on for `auth_timeout_s`, as its credentials may be changing:
    `read_again` returns the properties with what their files hold now.
    """

    def __init__(self, config: ClientConfig, read_again: Callable[[], ClientConfig], auth_timeout_s: float) -> None:
        """Raises ConfigError for a property that cannot be used."""
        self.url = config.get("url")
        self._properties = client_properties(config)
        self._read_again = read_again
        self._auth_timeout_s = auth_timeout_s
        # Address and credentials were right once: an error that says otherwise may pass.
        self._has_answered = False
        # Since when each answer has refused the credentials of now (time.monotonic).
        self._refused_since: float | None = None
        self._clients: list[SchemaRegistryClient] = []
        self._renewing = Lock()
        self.client = self.new_client()

    def new_client(self) -> SchemaRegistryClient:
        """A client that has kept nothing yet; raises ConfigError for a property that cannot be used."""
        client = self._connect(self._properties)
        self._clients.append(client)
        return client

    def _connect(self, properties: dict[str, object]) -> SchemaRegistryClient:
        try:
            client = SchemaRegistryClient.new_client(properties)
        except (OSError, TypeError, ValueError) as error:
            raise ConfigError(
                f"schema registry: its properties cannot be used: {reason_of(error)}; check the files that they name"
            ) from None
        # The client would keep any answer as a schema. Serializers ask by themselves for schemas that others refer to.
        client._rest_client.session.event_hooks = {"response": [_check_answer]}
        return client

    def _renew(self) -> None:
        """Take up changed credentials; raises ConfigError where their files cannot be used."""
        with self._renewing:
            properties = client_properties(self._read_again())
            if properties == self._properties:
                return
            for client in self._clients:
                # Serializers hold the clients, and these hold the schemas, so only the part with the credentials goes.
                client._rest_client = self._connect(properties)._rest_client
            self._properties = properties
            self._refused_since = None
            log.info("credentials of the schema registry renewed")

    def ask(self, call: Callable[[], _Answer]) -> _Answer:
        """Return the result of `call`.

        Raises RegistryAwayError, NotFoundError, InvalidSchemaError, and ConfigError where no other request would go
        better. After a request has succeeded, answers of another server are RegistryAwayError, and so are refusals
        until they have lasted too long.
        """
        try:
            answer = call()
        except Exception as error:
            explained = self.explain(error)
            if explained is None:
                raise
            raise explained from None
        self._has_answered = True
        self._refused_since = None
        return answer

    def explain(self, error: Exception) -> Exception | None:
        """The error that `ask` raises in place of the client's; None for one that no request has caused."""
        if isinstance(error, SchemaRegistryError):
            return self._refusal(error)
        reason = reason_of(error)
        if isinstance(error, StrayAnswerError | httpx.InvalidURL):
            return self._no_registry(reason)
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return ConfigError(
                f"the schema registry at {self.url} is not trusted, check --schema-registry-ca-location: {reason}"
            )
        if isinstance(error, httpx.TransportError):
            return RegistryAwayError(f"the schema registry at {self.url} does not answer: {reason}")
        if isinstance(error, OAuthTokenError):
            return RegistryAwayError(f"no token for the schema registry at {self.url}: {reason}")
        return None

    def _refusal(self, error: SchemaRegistryError) -> Exception:
        status, code = error.http_status_code, error.error_code
        reason = reason_of(Exception(error.error_message or f"HTTP {status}"))
        if status in (401, 403):
            return self._refused(f"HTTP {status}: {reason}")
        # The registry's own 404 has a code of five digits; that of another server has none.
        if status == 404 and (code or 0) >= 40400:
            return NotFoundError(reason)
        if status in (409, 422):
            return InvalidSchemaError(reason)
        if status in (408, 429) or status >= 500:
            return RegistryAwayError(f"the schema registry at {self.url} cannot answer: HTTP {status}: {reason}")
        return self._no_registry(f"HTTP {status}: {reason}")

    def _refused(self, reason: str) -> Exception:
        remedy = f"{_CREDENTIALS}: {reason}"
        if not self._has_answered:
            return ConfigError(f"the schema registry at {self.url} refused the request, {remedy}")
        now = time.monotonic()
        self._refused_since = since = self._refused_since or now
        left_s = self._auth_timeout_s - (now - since)
        try:
            self._renew()
        except ConfigError as error:
            remedy = f"{error}: {reason}"
        if left_s <= 0:
            return ConfigError(
                f"the schema registry at {self.url} has refused all requests for {now - since:.0f} s, {remedy}"
            )
        return RegistryAwayError(
            f"the schema registry at {self.url} refused the request; trying on for {left_s:.0f} s, {remedy}"
        )

    def _no_registry(self, reason: str) -> Exception:
        if self._has_answered:
            return RegistryAwayError(f"{self.url} does not answer as the schema registry that it did before: {reason}")
        return ConfigError(
            f"{self.url} does not answer as a schema registry, correct --schema-registry-url (it may need a path, as "
            f"/apis/ccompat/v7): {reason}"
        )


def _check_answer(response: httpx.Response) -> None:
    """Raise StrayAnswerError for a success without a schema, or without the id of one that was sent."""
    if not response.is_success:
        return
    response.read()
    name, kind, word = ("id", int, "number") if response.request.method == "POST" else ("schema", str, "text")
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get(name), kind):
        raise StrayAnswerError(f"HTTP {response.status_code} without a {word} {name!r}: {response.text[:100]!r}")


class _Writer(NamedTuple):
    """How values of one topic are written, and the schema that they are written with."""

    write: Callable[[Any, SerializationContext], bytes | None]
    schema: Schema


class RegistryCodec:
    """Reads and writes one field in one of the formats that have a registry.

    Values are written with the latest schema of the topic's subject, or with that of `schema_file`, which is registered
    there if it is not yet.
    """

    def __init__(self, registry: Registry, format_name: str, field: Field, schema_file: Path | None = None) -> None:
        self._registry = registry
        self._name = format_name
        self._type = TYPES[format_name]
        self._field = field
        self._schema_file = schema_file
        self._format = ("serialized",) if self._type == "PROTOBUF" else ()
        # By schema, and for Protobuf by the message in it; by topic. They are only added to.
        self._readers: dict[object, Callable[..., Any]] = {}
        self._writers: dict[str, _Writer] = {}

    def knows(self, data: bytes, topic: str, headers: Headers) -> bool:
        try:
            return _key(self._schema_id(data, self._context(topic, headers))) in self._readers
        except UndecodableError:
            return True

    def decode(self, data: bytes, topic: str, headers: Headers) -> Any:
        context = self._context(topic, headers)
        schema_id = self._schema_id(data, context)
        read = self._readers.get(_key(schema_id)) or self._new_reader(schema_id, topic)
        try:
            return read(data, context)
        except Exception as error:  # the data may be anything, and the library raises what comes of it
            raise self._failure(error, UndecodableError) from None

    def prepare(self, topic: str) -> None:
        if topic not in self._writers:
            self._writers[topic] = self._new_writer(topic)

    def prepared(self, topic: str) -> bool:
        return topic in self._writers

    def encode(self, value: Any, topic: str) -> bytes | None:
        if value is None:
            return None
        self.prepare(topic)
        try:
            return self._writers[topic].write(value, self._context(topic, []))
        except Exception as error:  # the value may be anything
            raise self._failure(error, UnencodableError) from None

    def encode_json(self, text: bytes, topic: str) -> bytes | None:
        value = parse_json(text, UnencodableError)
        try:
            return self.encode(value, topic)
        except UnencodableError:
            if self._type != "AVRO" or topic not in self._writers:
                raise
            datum = _of_avro_json(text, value, self._writers[topic].schema)
            if datum is None:
                raise
        return self.encode(datum, topic)

    def _failure(self, error: Exception, kind: Callable[[str], Exception]) -> Exception:
        """The ConfigError or RegistryAwayError behind an error of a serializer, or else `kind` with its reason."""
        explained = self._registry.explain(error) or error
        return explained if isinstance(explained, ConfigError | RegistryAwayError) else kind(reason_of(explained))

    def _context(self, topic: str, headers: Headers) -> SerializationContext:
        return SerializationContext(topic, _FIELDS[self._field], [*headers])

    def _schema_id(self, data: bytes, context: SerializationContext) -> SchemaId:
        schema_id = SchemaId(self._type)
        try:
            dual_schema_id_deserializer(data, context, schema_id)
        except Exception:  # the data may be anything
            raise UndecodableError(
                "it does not begin with the id of a schema, so no serializer of a schema registry has written it"
            ) from None
        return schema_id

    def _new_reader(self, schema_id: SchemaId, topic: str) -> Callable[..., Any]:
        client, subject = self._registry.client, f"{topic}-{self._field}"

        def fetch() -> Schema:
            if schema_id.guid is not None:
                try:
                    return client.get_schema_by_guid(str(schema_id.guid), *self._format)
                except SchemaRegistryError as error:
                    # A registry without this endpoint answers as any other server.
                    if error.http_status_code != 404:
                        raise
                    raise NotFoundError(reason_of(error)) from None
            assert schema_id.id is not None
            return client.get_schema(schema_id.id, subject, *self._format)

        named = schema_id.guid or schema_id.id
        try:
            schema = self._registry.ask(fetch)
        except (NotFoundError, InvalidSchemaError) as error:
            raise UndecodableError(
                f"the schema registry at {self._registry.url} has no schema {named}: {error}"
            ) from None
        if schema.schema_type != self._type:
            raise UndecodableError(
                f"its schema {named} is of type {schema.schema_type}, and the format is {self._name}"
            )
        read: Callable[..., Any]
        if self._type == "AVRO":
            read = AvroDeserializer(client, conf={**_BY_TOPIC})
        elif self._type == "JSON":
            read = JSONDeserializer(None, schema_registry_client=client, conf={**_BY_TOPIC})
        else:
            message = self._message_class(schema, schema_id.message_indexes or [0])
            read = ProtobufDeserializer(message, {**_BY_TOPIC}, client)
        self._readers[_key(schema_id)] = read
        return read

    def _new_writer(self, topic: str) -> _Writer:
        subject = f"{topic}-{self._field}"
        if self._schema_file is not None:
            return self._new_writer_of_file(subject, self._schema_file)
        client = self._registry.client
        try:
            schema = self._registry.ask(lambda: client.get_latest_version(subject, *self._format)).schema
        except (NotFoundError, InvalidSchemaError) as error:
            raise UnencodableError(
                f"the schema registry at {self._registry.url} has no schema of subject {subject}, register one: {error}"
            ) from None
        if schema.schema_type != self._type:
            raise UnencodableError(
                f"the latest schema of subject {subject} is one of {schema.schema_type}, and the format is {self._name}"
            )
        if self._type == "AVRO":
            return _Writer(AvroSerializer(client, conf={**_LATEST, **_STRICT}), schema)
        if self._type == "JSON":
            return _Writer(JSONSerializer(None, client, conf={**_LATEST}), schema)
        return self._protobuf_writer(client, schema)

    def _new_writer_of_file(self, subject: str, path: Path) -> _Writer:
        client, schema = self._registry.client, Schema(read_text(path), self._type)
        origin = f"--{self._field}-schema-file {path}"
        try:
            try:
                registered = self._registry.ask(lambda: client.lookup_schema(subject, schema))
            except NotFoundError:
                registered = self._registry.ask(lambda: client.register_schema_full_response(subject, schema))
        except (NotFoundError, InvalidSchemaError) as error:
            raise ConfigError(f"{origin}: the schema registry refuses it for subject {subject}: {error}") from None
        if self._type == "AVRO":
            return _Writer(AvroSerializer(client, schema, conf={**_OWN, **_STRICT}), schema)
        if self._type == "JSON":
            return _Writer(JSONSerializer(schema, client, conf={**_OWN}), schema)
        # The client has kept the text of the schema, and what is needed is its compiled form.
        fresh = self._registry.new_client()
        latest = self._registry.ask(lambda: fresh.get_latest_version(subject, *self._format))
        if latest.schema_id != registered.schema_id:
            raise ConfigError(
                f"{origin}: subject {subject} has a later schema than this, and a Protobuf message is written with the "
                "latest one; leave the option out"
            )
        return self._protobuf_writer(fresh, latest.schema)

    def _protobuf_writer(self, client: SchemaRegistryClient, schema: Schema) -> _Writer:
        """Values are messages of the first type in the schema: objects of that, or dictionaries as in its JSON."""
        try:
            message_class = self._message_class(schema, [0])
        except UndecodableError as error:
            raise UnencodableError(str(error)) from None
        serialize: Callable[..., bytes | None] = ProtobufSerializer(message_class, client, {**_LATEST})

        def write(value: Any, context: SerializationContext) -> bytes | None:
            message = message_class()
            if isinstance(value, ProtobufMessage):
                if value.DESCRIPTOR.full_name != message.DESCRIPTOR.full_name:
                    raise UnencodableError(
                        f"it is a {value.DESCRIPTOR.full_name}, and the schema is of a {message.DESCRIPTOR.full_name}"
                    )
                # Of the same name, and maybe of a class that was generated from the schema.
                message.ParseFromString(value.SerializeToString())
            else:
                ParseDict(value, message)
            return serialize(message, context)

        return _Writer(write, schema)

    def _message_class(self, schema: Schema, indexes: list[int]) -> Any:
        """The class of a message of a schema; raises as `ask`, and UndecodableError where it has no such message."""
        pool = DescriptorPool()
        _init_pool(pool)
        self._add_references(pool, schema)
        descriptor = self._add_file(pool, "default", schema)
        try:
            found = [*descriptor.message_types_by_name.values()][indexes[0]]
            for each in indexes[1:]:
                found = found.nested_types[each]
        except IndexError:
            raise UndecodableError(f"its schema has no message {indexes}") from None
        return GetMessageClass(found)

    def _add_references(self, pool: DescriptorPool, schema: Schema) -> None:
        for each in schema.references or ():
            if each.name is None or _has_file(pool, each.name):
                continue

            def fetch(reference: SchemaReference = each) -> RegisteredSchema:
                subject, version = reference.subject or "", reference.version or "latest"
                return self._registry.client.get_version(subject, version, True, *self._format)  # type: ignore[arg-type]

            try:
                referenced = self._registry.ask(fetch).schema
            except (NotFoundError, InvalidSchemaError) as error:
                raise UndecodableError(f"its schema refers to {each.name}, which cannot be had: {error}") from None
            self._add_references(pool, referenced)
            self._add_file(pool, each.name, referenced)

    def _add_file(self, pool: DescriptorPool, name: str, schema: Schema) -> FileDescriptor:
        try:
            file = FileDescriptorProto.FromString(base64.b64decode(schema.schema_str or "", validate=True))
        except (binascii.Error, ValueError, DecodeError):
            raise ConfigError(
                f"the schema registry at {self._registry.url} does not hand out compiled Protobuf schemas "
                "(?format=serialized, as base64), which the format protobuf needs; use one that does"
            ) from None
        file.name = name
        try:
            pool.Add(file)
            return pool.FindFileByName(name)
        except (KeyError, TypeError) as error:
            raise UndecodableError(f"its schema cannot be used: {reason_of(error)}") from None


def _key(schema_id: SchemaId) -> object:
    return schema_id.guid or schema_id.id, tuple(schema_id.message_indexes or ())


def _has_file(pool: DescriptorPool, name: str) -> bool:
    try:
        pool.FindFileByName(name)
    except KeyError:
        return False
    return True


def _of_avro_json(text: bytes, given: Any, schema: Schema) -> Any | None:
    """The object of a text in Avro's own JSON encoding, which names the branch of a union and has bytes as text; None
    where it is none, or has what the schema has not: fastavro's reader would drop that.
    """
    try:
        parsed = fastavro.parse_schema(json.loads(schema.schema_str or ""))
        datum = next(iter(fastavro.json_reader(io.StringIO(text.decode()), parsed)))
        written = io.StringIO()
        fastavro.json_writer(written, parsed, [datum])
    except Exception:  # the text may be anything, and so may what fastavro raises
        return None
    return datum if _is_within(given, json.loads(written.getvalue())) else None


def _is_within(given: Any, written: Any) -> bool:
    """Whether all fields of `given` are in `written`."""
    if isinstance(given, dict) and isinstance(written, dict):
        return all(name in written and _is_within(value, written[name]) for name, value in given.items())
    if isinstance(given, list) and isinstance(written, list):
        return len(given) == len(written) and all(map(_is_within, given, written))
    return isinstance(given, dict | list) == isinstance(written, dict | list)

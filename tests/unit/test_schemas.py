"""Keys and values as objects: the formats, the schema registry's answers, and what becomes of messages."""

import asyncio
import base64
import functools
import io
import json
import threading
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastavro
import pytest
from confluent_kafka import Message
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from tests.conftest import Certificates
from tests.registry import FakeRegistry, fake_registry
from tests.unit.members import QUICK, Group
from workers.config import ClientConfig, Precedence, Setting, read_properties_file
from workers.consumer.failures import ErrorPolicy
from workers.consumer.printer import FORMATS
from workers.errors import ConfigError, RegistryAwayError, UndecodableError, UnencodableError
from workers.handlers import batch
from workers.json_text import json_line
from workers.kafka.messages import Headers
from workers.producer.lines import LineFormat, LineReader, read_file
from workers.schemas.codecs import Codec, Codecs, JsonCodec
from workers.schemas.config import (
    client_properties,
    parse_property,
    registry_config,
    url_setting,
    user_info_setting,
)
from workers.schemas.middleware import coding
from workers.schemas.registry import Registry, RegistryCodec
from workers.sources import Outgoing, SourceError, call_source
from workers.testing.memory import FakeBroker

ORDER: dict[str, Any] = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "count", "type": ["null", "long"], "default": None},
    ],
}
AVRO = json.dumps(ORDER)
JSON_SCHEMA = json.dumps(
    {
        "title": "Order",
        "type": "object",
        "properties": {"id": {"type": "string"}, "count": {"type": "integer"}},
        "required": ["id"],
        "additionalProperties": False,
    }
)


def protobuf(*messages: str, dependency: str = "", package: str = "shop") -> str:
    """A compiled schema as registries hand it out; each message has the fields `id` and `count`."""
    file = FileDescriptorProto(name="x.proto", package=package, syntax="proto3")
    for name in messages:
        message = file.message_type.add(name=name)
        message.field.add(name="id", number=1, type=9, label=1)
        message.field.add(name="count", number=2, type=3, label=1)
        if dependency:
            message.field.add(name="other", number=3, type=11, type_name=".shared.Other", label=1)
    if dependency:
        file.dependency.append(dependency)
    return base64.b64encode(file.SerializeToString()).decode()


SCHEMAS = {
    "avro": (AVRO, "AVRO"),
    "protobuf": (protobuf("Order", "Return"), "PROTOBUF"),
    "json-schema": (JSON_SCHEMA, "JSON"),
}
EVERY_FORMAT = pytest.mark.parametrize("name", SCHEMAS)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as registry:
        yield registry


def client(registry: FakeRegistry, **properties: str) -> Registry:
    told = {"url": registry.url, **{name.replace("_", "."): value for name, value in properties.items()}}
    config = registry_config([Setting(*each, Precedence.COMMAND_LINE, "test") for each in told.items()])
    return Registry(config, lambda: config, 60.0)


def codec(registry: FakeRegistry, name: str = "avro", **options: Any) -> RegistryCodec:
    return RegistryCodec(client(registry), name, "value", **options)


def as_dict(value: Any) -> Any:
    return json.loads(json_line(value))


# Bytes


@EVERY_FORMAT
def test_what_is_written_in_a_format_is_read_in_it(registry: FakeRegistry, name: str) -> None:
    registry.register("orders-value", *SCHEMAS[name])
    written = codec(registry, name).encode({"id": "ö", "count": 5}, "orders")
    assert written is not None
    assert written[:5] == b"\0\0\0\0\1"
    decoded = codec(registry, name).decode(written, "orders", [])
    assert as_dict(decoded) == {"id": "ö", "count": "5" if name == "protobuf" else 5}
    assert codec(registry, name).encode(decoded, "orders") == written


def test_another_reader_understands_the_avro_that_is_written(registry: FakeRegistry) -> None:
    registry.register("orders-value", AVRO)
    written = codec(registry).encode({"id": "a", "count": 5}, "orders") or b""
    schema = fastavro.parse_schema(json.loads(AVRO))
    assert fastavro.schemaless_reader(io.BytesIO(written[5:]), schema, None) == {"id": "a", "count": 5}


def test_the_registry_is_asked_once_for_each_schema(registry: FakeRegistry) -> None:
    registry.register("orders-value", AVRO)
    each = codec(registry)
    written = [each.encode({"id": str(number)}, "orders") for number in range(100)]
    for data in written:
        each.decode(data or b"", "orders", [])
    assert len(registry.requests) == 2


def test_a_second_message_of_a_protobuf_schema_is_read_as_such(registry: FakeRegistry) -> None:
    registry.register("orders-value", *SCHEMAS["protobuf"])
    # The second message of the file: one index, which is 1, in zigzag.
    read = codec(registry, "protobuf").decode(b"\0\0\0\0\1\2\2\n\1a", "orders", [])
    assert read.DESCRIPTOR.full_name == "shop.Return"
    assert read.id == "a"


def test_a_protobuf_schema_may_refer_to_others(registry: FakeRegistry) -> None:
    registry.register("other", protobuf("Other", package="shared"), "PROTOBUF")
    reference = {"name": "other.proto", "subject": "other", "version": 1}
    registry.register("orders-value", protobuf("Order", dependency="other.proto"), "PROTOBUF", [reference])
    each = codec(registry, "protobuf")
    written = each.encode({"id": "a", "other": {"id": "b"}}, "orders")
    assert each.decode(written or b"", "orders", []).other.id == "b"


def test_an_avro_schema_may_refer_to_others(registry: FakeRegistry) -> None:
    registry.register("shared-order", AVRO)
    cart = {"type": "record", "name": "Cart", "fields": [{"name": "order", "type": "Order"}]}
    reference = {"name": "Order", "subject": "shared-order", "version": 1}
    registry.register("carts-value", json.dumps(cart), "AVRO", [reference])
    each = codec(registry)
    written = each.encode({"order": {"id": "a", "count": None}}, "carts")
    assert each.decode(written or b"", "carts", []) == {"order": {"id": "a", "count": None}}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "does not begin with the id of a schema"),
        (b'{"id": "a"}', "does not begin with the id of a schema"),
        (b"\0\0\0\0\x63abc", "has no schema 99"),
        (b"\0\0\0\0\1\xff\xff\xff\xff", "index out of range|EOF"),
        (b"\0\0\0\0\2{}", "schema 2 is of type JSON, and the format is avro"),
    ],
)
def test_bytes_that_are_not_of_the_format_are_said_to_be_so(registry: FakeRegistry, data: bytes, says: str) -> None:
    registry.register("orders-value", AVRO)
    registry.register("others-value", JSON_SCHEMA, "JSON")
    with pytest.raises(UndecodableError, match=says):
        codec(registry).decode(data, "orders", [])


def test_a_document_that_its_json_schema_refuses_is_not_read(registry: FakeRegistry) -> None:
    registry.register("orders-value", JSON_SCHEMA, "JSON")
    with pytest.raises(UndecodableError, match="'id' is a required property"):
        codec(registry, "json-schema").decode(b"\0\0\0\0\1{}", "orders", [])
    with pytest.raises(UndecodableError, match="line 1 column 1"):
        codec(registry, "json-schema").decode(b"\0\0\0\0\1not json", "orders", [])


@EVERY_FORMAT
def test_an_object_that_the_schema_has_no_place_for_is_not_written(registry: FakeRegistry, name: str) -> None:
    registry.register("orders-value", *SCHEMAS[name])
    each = codec(registry, name)
    for wrong in ({"id": 5}, {"id": "a", "cuont": 5}, ["a"], object()):
        with pytest.raises(UnencodableError):
            each.encode(wrong, "orders")
    with pytest.raises(UnencodableError, match="has no schema of subject others-value, register one"):
        each.encode({"id": "a"}, "others")
    assert each.encode(None, "orders") is None


def test_lines_of_avro_are_plain_json_or_avros_own_and_none_loses_a_field(registry: FakeRegistry) -> None:
    fields = [*ORDER["fields"], {"name": "raw", "type": "bytes"}]
    registry.register("orders-value", json.dumps({**ORDER, "fields": fields}))
    registry.register("plain-value", AVRO)
    each = codec(registry)
    assert each.encode_json(b'{"id": "a", "count": 5}', "plain") == each.encode({"id": "a", "count": 5}, "plain")
    own = each.encode_json(b'{"id": "a", "count": {"long": 5}, "raw": "\\u00ff"}', "orders")
    assert each.decode(own or b"", "orders", []) == {"id": "a", "count": 5, "raw": b"\xff"}
    for line in (b'{"id": "a", "cuont": {"long": 5}, "raw": "x"}', b'{"id": "a", "cuont": 5}', b'{"id": "a"', b"[]"):
        with pytest.raises(UnencodableError):
            each.encode_json(line, "orders")
    assert each.encode_json(b"null", "orders") is None


@EVERY_FORMAT
def test_a_schema_from_a_file_is_registered_once(registry: FakeRegistry, name: str, tmp_path: Path) -> None:
    schema, _ = SCHEMAS[name]
    path = tmp_path / "schema"
    path.write_text(schema)
    first = codec(registry, name, schema_file=path).encode({"id": "a"}, "orders")
    assert first is not None
    asked = len(registry.requests)
    assert codec(registry, name, schema_file=path).encode({"id": "a"}, "orders") == first
    assert [each for each in registry.requests[asked:] if each == "/subjects/orders-value/versions"] == []


def test_a_file_that_is_no_schema_is_refused_with_its_name(registry: FakeRegistry, tmp_path: Path) -> None:
    path = tmp_path / "schema.avsc"
    path.write_text("{")
    with pytest.raises(ConfigError, match=f"--value-schema-file {path}: .*orders-value: Invalid schema"):
        codec(registry, schema_file=path).encode({"id": "a"}, "orders")


# Answers of the registry


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (401, ConfigError, "refused the request, check --schema-registry-username"),
        (403, ConfigError, "refused the request"),
        (405, ConfigError, "does not answer as a schema registry, correct --schema-registry-url"),
        (429, RegistryAwayError, "cannot answer: HTTP 429"),
        (500, RegistryAwayError, "cannot answer: HTTP 500"),
        (503, RegistryAwayError, "cannot answer: HTTP 503: as the test says"),
    ],
)
def test_each_answer_of_the_registry_has_its_consequence(
    registry: FakeRegistry, status: int, error: type[Exception], says: str
) -> None:
    registry.status = status
    with pytest.raises(error, match=says):
        codec(registry).decode(b"\0\0\0\0\1abc", "orders", [])
    with pytest.raises(error, match=says):
        codec(registry).encode({}, "orders")


def test_another_server_is_not_taken_for_a_registry_without_the_schema(registry: FakeRegistry) -> None:
    registry.url += "/no/such/path"
    with pytest.raises(ConfigError, match="does not answer as a schema registry"):
        codec(registry).decode(b"\0\0\0\0\1abc", "orders", [])


@pytest.mark.parametrize("stray", [None, (404, b"<html>")], ids=["plain 404", "HTML"])
def test_a_message_whose_schema_id_is_of_a_kind_that_the_registry_has_not_is_undecodable(
    registry: FakeRegistry, stray: tuple[int, bytes] | None
) -> None:
    registry.stray = stray
    guid = uuid.UUID(int=7)
    headers: Headers = [("__value_schema_id", b"\1" + guid.bytes)]
    with pytest.raises(UndecodableError, match=f"has no schema {guid}: "):
        codec(registry).decode(b"abc", "orders", headers)
    assert registry.requests == [f"/schemas/guids/{guid}"]


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b"{}", "refused the request; trying on for 60 s, check --schema-registry-username"),
        (403, b"<html>", "refused the request"),
        (404, b"<html>", "did before: HTTP 404"),
        (200, b"<html>", "did before: HTTP 200 without a text 'schema': '<html>'"),
        (200, b'{"status":"ok"}', "did before: HTTP 200 without a text 'schema': '{\"status\":\"ok\"}'"),
        (200, b'{"schema":{}}', "did before: HTTP 200 without"),
        (200, b"[]", "did before: HTTP 200 without"),
        (200, b"null", "did before: HTTP 200 without"),
        (200, b"", "did before: HTTP 200 without"),
        (204, b"", "did before: HTTP 204 without"),
    ],
)
def test_a_registry_that_has_answered_before_is_asked_again_after_a_stray_answer(
    registry: FakeRegistry, status: int, body: bytes, says: str
) -> None:
    registry.register("orders-value", AVRO)
    registry.register("others-value", '"string"')
    each = codec(registry)
    each.encode({"id": "a"}, "orders")
    registry.stray = status, body
    with pytest.raises(RegistryAwayError, match=says):
        each.decode(b"\0\0\0\0\2\2a", "others", [])
    with pytest.raises(RegistryAwayError, match=says):
        each.encode("a", "others")
    with pytest.raises(ConfigError):
        codec(registry).encode("a", "others")
    registry.stray = None
    assert each.decode(b"\0\0\0\0\2\2a", "others", []) == "a"
    assert each.encode("a", "others") == b"\0\0\0\0\2\2a"


@pytest.mark.parametrize("body", [b'{"status":"ok"}', b'{"id":null}', b"null", b""])
@pytest.mark.parametrize("stray_at", ["/subjects/orders-value", "/subjects/orders-value/versions"])
@EVERY_FORMAT
def test_a_schema_is_not_taken_for_registered_where_another_server_answers(
    registry: FakeRegistry, tmp_path: Path, name: str, stray_at: str, body: bytes
) -> None:
    schema, kind = SCHEMAS[name]
    registry.register("others-value", schema, kind)
    path = tmp_path / "schema"
    path.write_text(schema)
    shared = client(registry)
    RegistryCodec(shared, name, "value").encode({"id": "a"}, "others")
    registry.stray, registry.stray_at = (200, body), stray_at
    each = RegistryCodec(shared, name, "value", schema_file=path)
    with pytest.raises(RegistryAwayError, match="did before: HTTP 200 without a number 'id'"):
        each.encode({"id": "a"}, "orders")
    with pytest.raises(ConfigError, match="does not answer as a schema registry, correct --schema-registry-url"):
        codec(registry, name, schema_file=path).encode({"id": "a"}, "orders")
    registry.stray = None
    assert each.encode({"id": "a"}, "orders")


@pytest.mark.parametrize("body", [b"<html>", b'{"status":"ok"}', b"null", b""])
def test_a_stray_answer_about_a_schema_that_another_refers_to_makes_no_message_undecodable(
    registry: FakeRegistry, body: bytes
) -> None:
    registry.register("shared-order", AVRO)
    cart = {"type": "record", "name": "Cart", "fields": [{"name": "order", "type": "Order"}]}
    reference = {"name": "Order", "subject": "shared-order", "version": 1}
    registry.register("carts-value", json.dumps(cart), "AVRO", [reference])
    written = codec(registry).encode({"order": {"id": "a", "count": None}}, "carts") or b""
    registry.stray, registry.stray_at = (200, body), "/subjects/shared-order"
    each = codec(registry)
    with pytest.raises(RegistryAwayError, match="does not answer as the schema registry that it did before"):
        each.decode(written, "carts", [])
    with pytest.raises(RegistryAwayError, match="does not answer as the schema registry that it did before"):
        each.encode({"order": {"id": "a", "count": None}}, "carts")
    registry.stray = None
    assert each.decode(written, "carts", []) == {"order": {"id": "a", "count": None}}


@pytest.mark.parametrize("status", [401, 403])
def test_a_registry_that_goes_on_to_refuse_ends_the_worker_when_the_patience_is_over(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    now = [1000.0]
    monkeypatch.setattr("workers.schemas.registry.time", SimpleNamespace(monotonic=lambda: now[0]))
    registry.register("orders-value", AVRO)
    registry.register("others-value", '"string"')
    each = codec(registry)
    each.encode({"id": "a"}, "orders")
    registry.status = status
    for now[0] in (1000.0, 1030.0, 1059.0):
        with pytest.raises(RegistryAwayError, match=f"trying on for {1060 - now[0]:.0f} s, check --schema-registry"):
            each.decode(b"\0\0\0\0\2\2a", "others", [])
    now[0] = 1060.0
    with pytest.raises(ConfigError, match="has refused all requests for 60 s, check --schema-registry-username"):
        each.decode(b"\0\0\0\0\2\2a", "others", [])


def test_a_registry_has_all_the_patience_again_after_it_has_answered(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("workers.schemas.registry.time", SimpleNamespace(monotonic=lambda: now[0]))
    registry.register("orders-value", AVRO)
    registry.register("others-value", '"string"')
    each = client(registry)
    each.ask(lambda: each.client.get_schema(1))
    for now[0] in (1000.0, 1050.0, 1100.0):
        registry.status = 401
        with pytest.raises(RegistryAwayError, match="trying on for 60 s"):
            each.ask(lambda: each.client.get_latest_version("others-value"))
        registry.status = None
        each.ask(lambda: each.client.get_latest_version("orders-value"))


def test_credentials_that_have_changed_in_their_file_are_used_when_the_old_ones_are_refused(
    registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry.register("orders-value", AVRO)
    registry.register("others-value", '"string"')
    registry.user = "me:old"
    file = tmp_path / "password"
    file.write_text("old")

    def read() -> ClientConfig:
        url = url_setting(registry.url, Precedence.COMMAND_LINE, "test")
        return registry_config([url, user_info_setting("me", file, "test", Precedence.COMMAND_LINE)])

    each = RegistryCodec(Registry(read(), read, 60.0), "avro", "value")
    each.encode({"id": "a"}, "orders")
    registry.user = "me:new"
    file.write_text("")
    with pytest.raises(RegistryAwayError, match=r"trying on for 60 s, .*password"):
        each.encode("a", "others")
    file.write_text("new")
    with pytest.raises(RegistryAwayError, match="refused the request"):
        each.encode("a", "others")
    assert each.encode("a", "others") == b"\0\0\0\0\2\2a"
    assert "new" not in caplog.text.replace("renewed", "")
    asked = len(registry.requests)
    each.encode({"id": "a"}, "orders")
    assert len(registry.requests) == asked


def test_a_registry_without_compiled_schemas_is_said_to_be_one(registry: FakeRegistry) -> None:
    registry.register("orders-value", 'syntax = "proto3"; message Order { string id = 1; }', "PROTOBUF")
    with pytest.raises(ConfigError, match="does not hand out compiled Protobuf schemas"):
        codec(registry, "protobuf").decode(b"\0\0\0\0\1\0", "orders", [])


def test_the_user_and_the_password_reach_the_registry(registry: FakeRegistry) -> None:
    registry.register("orders-value", AVRO)
    registry.user = "worker:horse"
    with pytest.raises(ConfigError, match="HTTP 401"):
        codec(registry).encode({"id": "a"}, "orders")
    known = RegistryCodec(client(registry, basic_auth_user_info="worker:horse"), "avro", "value")
    assert known.encode({"id": "a"}, "orders")


def test_a_registry_is_trusted_by_its_ca_only(certificates: Certificates) -> None:
    with fake_registry(certificate=certificates.broker) as registry:
        registry.register("orders-value", AVRO)
        known = RegistryCodec(client(registry, ssl_ca_location=certificates.ca), "avro", "value")
        assert known.encode({"id": "a"}, "orders")
        other = RegistryCodec(client(registry, ssl_ca_location=certificates.other_ca), "avro", "value")
        with pytest.raises(ConfigError, match="is not trusted, check --schema-registry-ca-location"):
            other.encode({"id": "a"}, "orders")
        with pytest.raises(ConfigError, match="No such file"):
            client(registry, ssl_ca_location="/no/such/file")


# Messages and their handlers


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker(t=1, out=1)


class Seen:
    """Handlers of every kind that note the values they are given."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def one(self, message: Message) -> None:
        self.values.append(message.value())

    async def one_async(self, message: Message) -> None:
        self.values.append(message.value())

    def every(self) -> dict[str, tuple[Any, dict[str, Any]]]:
        @batch
        def many(messages: list[Message]) -> None:
            for message in messages:
                self.one(message)

        @batch
        async def many_async(messages: list[Message]) -> None:
            for message in messages:
                self.one(message)

        return {
            "one by one": (self.one, {}),
            "threads": (self.one, {"concurrency": 4, "order": "none"}),
            "batch": (many, {}),
            "async": (self.one_async, {"concurrency": 4, "order": "none"}),
            "async batch": (many_async, {}),
        }


def reading(registry: FakeRegistry) -> dict[str, Any]:
    return {"middlewares": [coding(Codecs(value=codec(registry)), Codecs())]}


@pytest.mark.parametrize("kind", Seen().every())
def test_every_kind_of_handler_gets_objects_and_what_is_none_becomes_a_dead_letter(
    broker: FakeBroker, group: Group, registry: FakeRegistry, kind: str
) -> None:
    registry.register("t-value", AVRO)
    encode = functools.partial(codec(registry).encode, topic="t")
    unknown = b"\0\0\0\0\x63abc"
    broker.produce([encode({"id": "a"}), None, b"no avro", encode({"id": "b", "count": 1}), unknown], key=b"k")
    seen = Seen()
    handler, options = seen.every()[kind]
    member = group.member(handler, **options, **reading(registry)).start()
    group.until(lambda: broker.offset() == 5, "all messages are done")

    expected = [None, {"id": "a", "count": None}, {"id": "b", "count": 1}]
    assert sorted(seen.values, key=str) == sorted(expected, key=str)
    letters = member.dead_letters.sent
    assert sorted((letter.value, letter.key, letter.attempts) for letter in letters) == [
        (unknown, b"k", 1),
        (b"no avro", b"k", 1),
    ]
    assert all("the value cannot be decoded: " in letter.error for letter in letters)


def test_messages_wait_for_a_registry_that_is_away(broker: FakeBroker, group: Group, registry: FakeRegistry) -> None:
    registry.register("t-value", AVRO)
    broker.produce([codec(registry).encode({"id": "a"}, "t")])
    registry.status = 503
    seen = Seen()
    one_attempt = ErrorPolicy(max_attempts=1, backoff_s=QUICK.backoff_s, backoff_max_s=QUICK.backoff_max_s)
    member = group.member(seen.one, policy=one_attempt, **reading(registry)).start()
    group.until(lambda: member.consumer.status.topics["t"].retried > 2, "the message is tried again")
    assert not broker.offset()
    registry.status = None
    group.until(lambda: broker.offset() == 1, "the message is done")
    assert (seen.values, member.dead_letters.sent) == ([{"id": "a", "count": None}], [])


@pytest.mark.parametrize("kind", ["one by one", "async"])
def test_a_registry_that_refuses_ends_the_worker_and_no_message_is_lost(
    broker: FakeBroker, group: Group, registry: FakeRegistry, kind: str
) -> None:
    broker.produce([b"\0\0\0\0\1\2a\0"])
    registry.status = 403
    handler, options = Seen().every()[kind]
    member = group.member(handler, **options, **reading(registry))
    with pytest.raises(ConfigError, match="refused the request"):
        member.finish()
    assert not broker.offset()
    assert member.dead_letters.sent == []


class Slow(JsonCodec):
    """Has to ask a registry, and notes in which thread it did."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def knows(self, *_: object) -> bool:
        return bool(self.threads)

    def decode(self, *arguments: Any) -> Any:
        self.threads.append(threading.get_ident())
        return super().decode(*arguments)


def test_an_event_loop_does_not_wait_for_the_registry(broker: FakeBroker, group: Group) -> None:
    slow = Slow()
    loops: list[int] = []

    async def handle(message: Message) -> None:
        await asyncio.sleep(0)
        loops.append(threading.get_ident())

    broker.produce([b"1", b"2"])
    group.member(handle, middlewares=[coding(Codecs(value=slow), Codecs())]).start()
    group.until(lambda: broker.offset() == 2, "all messages are done")
    assert slow.threads[0] != loops[0] == slow.threads[1]


# Messages that handlers give back


def writing(value: Codec, key: Codec | None = None) -> dict[str, Any]:
    return {"middlewares": [coding(Codecs(value=JsonCodec()), Codecs(key, value))]}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_objects_that_a_handler_gives_back_are_written_in_their_format(
    broker: FakeBroker, group: Group, registry: FakeRegistry, asynchronous: bool
) -> None:
    registry.register("out-value", AVRO)

    def yield_two(message: Message) -> Iterator[Outgoing]:
        order: Any = message.value()
        yield Outgoing({"id": order["id"]}, key={"k": 1}, topic="out")
        yield Outgoing(b"as it is", topic="out")
        yield Outgoing(None, key="text", topic="out")

    async def return_two(message: Message) -> list[Outgoing]:
        return [*yield_two(message)]

    broker.produce([b'{"id": "a"}'])
    handler = return_two if asynchronous else yield_two
    group.member(handler, **writing(codec(registry), JsonCodec())).start()
    group.until(lambda: broker.offset() == 1, "the message is done")
    log = broker.logs["out", 0].records
    assert [each.value for each in log] == [codec(registry).encode({"id": "a"}, "out"), b"as it is", None]
    assert [each.key for each in log] == [b'{"k": 1}', None, b'"text"']


def test_an_output_that_cannot_be_written_is_a_failed_attempt(
    broker: FakeBroker, group: Group, registry: FakeRegistry
) -> None:
    registry.register("out-value", AVRO)
    broker.produce([b'{"id": 5}'])
    member = group.member(lambda message: Outgoing(message.value(), topic="out"), **writing(codec(registry))).start()
    group.until(lambda: broker.offset() == 1, "the message is done")
    (letter,) = member.dead_letters.sent
    assert (letter.value, letter.attempts) == (b'{"id": 5}', 5)
    assert "an output to topic out cannot be sent: its value cannot be written: " in letter.error


def test_an_output_waits_for_a_registry_that_is_away(broker: FakeBroker, group: Group, registry: FakeRegistry) -> None:
    registry.register("out-value", AVRO)
    registry.status = 503
    broker.produce([b'{"id": "a"}'])
    policy = ErrorPolicy(max_attempts=1, backoff_s=0.01, backoff_max_s=0.02)
    handler = functools.partial(Outgoing, topic="out")
    member = group.member(lambda message: handler(message.value()), policy=policy, **writing(codec(registry))).start()
    group.until(lambda: member.consumer.status.topics["t"].retried > 1, "the message is tried again")
    registry.status = None
    group.until(lambda: broker.offset() == 1, "the message is done")
    assert len(broker.values("out")) == 1
    assert member.dead_letters.sent == []


# Printing, lines and sources


def test_decoded_objects_are_printed_as_json() -> None:
    value = {"id": "ö", "raw": b"\xff", "price": Decimal("1.10")}
    message = Message(topic="t", partition=0, offset=5, key=b"k", value=b"", timestamp=(1, 7))
    message.set_value(value)
    text = '{"id": "ö", "raw": "ÿ", "price": "1.10"}'
    assert FORMATS["value"]([message]).decode() == f"{text}\n"
    assert FORMATS["text"]([message]).decode() == f"t[0]@5 key=k {text}\n"
    assert json.loads(FORMATS["json"]([message]))["value"] == json.loads(text)


def test_half_of_a_surrogate_pair_is_printed_escaped() -> None:
    message = Message(topic="t", partition=0, offset=5, key=b"k", value=b"", timestamp=(1, 7))
    text = r'{"id": "\ud800"}'
    message.set_value(JsonCodec().decode(text.encode(), "t", []))
    assert FORMATS["value"]([message]).decode() == f"{text}\n"
    assert FORMATS["text"]([message]).decode() == f"t[0]@5 key=k {text}\n"
    assert json.loads(FORMATS["json"]([message]))["value"] == {"id": "\ud800"}


def test_a_line_that_cannot_be_written_is_named_and_nothing_is_sent(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.register("t-value", AVRO)
    path = tmp_path / "orders.json"
    path.write_text('{"id": "a"}\n{"id": 5}\n')
    strict = LineFormat(codecs=Codecs(value=codec(registry)), topic="t")
    with pytest.raises(ConfigError, match=r"orders\.json line 2: .*; nothing was sent\. Mend it"):
        read_file(str(path), strict)
    lenient = LineFormat(codecs=strict.codecs, topic="t", dead_letter_invalid=True)
    with path.open("rb") as stream:
        good, bad = LineReader(stream, "orders.json", lenient)
    assert good["value"] == codec(registry).encode({"id": "a"}, "t")
    assert bad["value"] == b'{"id": 5}'
    assert "line 2" in bad["invalid"]


def test_lines_have_keys_in_a_format_of_their_own(registry: FakeRegistry) -> None:
    registry.register("t-key", '"string"')
    keys = Codecs(key=RegistryCodec(client(registry), "avro", "key"))
    field = LineReader(io.BytesIO(b'{"id": "a"}\n'), "x", LineFormat(key_field="id", codecs=keys, topic="t"))
    assert [*field] == [{"key": b"\0\0\0\0\1\2a", "value": b'{"id": "a"}'}]
    split = LineReader(io.BytesIO(b'"a":v\nalone\n'), "x", LineFormat(key_separator=b":", codecs=keys, topic="t"))
    assert [*split] == [{"key": b"\0\0\0\0\1\2a", "value": b"v"}, {"key": None, "value": b"alone"}]
    broken = LineReader(io.BytesIO(b"a:v\n"), "x", LineFormat(key_separator=b":", codecs=keys, topic="t"))
    with pytest.raises(SourceError, match="x line 1: not JSON"):
        next(iter(broken))


def test_a_source_yields_objects_in_its_format() -> None:
    encode = functools.partial(Codecs(value=JsonCodec()).encode, topic="t")

    def items() -> Iterator[object]:
        yield {"id": 1}
        yield "text"
        yield b"as it is"
        yield Outgoing([1], key="k")
        yield {1j: 2}

    made = call_source(items, "m:items", encode)
    assert [next(made)["value"] for _ in range(4)] == [b'{"id": 1}', b'"text"', b"as it is", b"[1]"]
    with pytest.raises(SourceError, match=r"m:items, message 5: its value cannot be written: .*JSON"):
        next(made)
    with pytest.raises(SourceError, match="value is a dict; give text, bytes or None where no format is set for it"):
        next(call_source(lambda: [Outgoing({})], "m:items"))


@pytest.mark.parametrize("line", [b"{", b"\xff", b"[" * 100_000])
def test_plain_json_says_what_is_no_json(line: bytes) -> None:
    with pytest.raises(UnencodableError, match="not JSON: "):
        JsonCodec().encode_json(line, "t")
    with pytest.raises(UndecodableError, match="not JSON: "):
        JsonCodec().decode(line, "t", [])


def test_an_integer_that_is_too_long_to_be_read_is_a_fault_of_its_message_or_line() -> None:
    text = b"1" * 5000
    says = "an integer of more than 4300 digits"
    with pytest.raises(UndecodableError, match=says):
        JsonCodec().decode(text, "t", [])
    with pytest.raises(UnencodableError, match=says):
        JsonCodec().encode_json(text, "t")
    [record] = LineReader(io.BytesIO(text), "x", LineFormat(key_field="id", topic="t", dead_letter_invalid=True))
    assert says in record["invalid"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_does_not_have_is_not_written(number: float) -> None:
    with pytest.raises(UnencodableError, match="cannot be written as JSON"):
        JsonCodec().encode({"total": number}, "t")


# Configuration


def test_a_secret_is_taken_from_a_file_or_a_variable_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("basic.auth.user.info=u:horse", "ssl.key.password=horse", "bearer.auth.token=horse"):
        with pytest.raises(ConfigError, match="is a secret, and others can see") as caught:
            parse_property(text, Precedence.COMMAND_LINE, "--schema-registry-property")
        assert "horse" not in str(caught.value)
    path = tmp_path / "registry.properties"
    path.write_text("# a comment\nbasic.auth.user.info=u:horse\ntimeout=3\n")
    config = registry_config(read_properties_file(path, parse_property))
    assert client_properties(config)["basic.auth.user.info"] == "u:horse"
    assert client_properties(config)["timeout"] == 3.0
    assert "horse" not in config.show()

    password = tmp_path / "password"
    password.write_text("horse\n")
    assert user_info_setting("u", password, "o", Precedence.COMMAND_LINE).value == "u:horse"
    with pytest.raises(ConfigError, match="its password is missing"):
        user_info_setting("u", None, "--schema-registry-username", Precedence.COMMAND_LINE)
    monkeypatch.setenv("KAFKA_SCHEMA_REGISTRY_PASSWORD", "horse")
    assert user_info_setting("u", None, "o", Precedence.COMMAND_LINE).value == "u:horse"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("timeuot=3", "has no property 'timeuot'; it has"),
        ("timeout=soon", "timeout=soon cannot be used: it is no number"),
        ("horse", "not NAME=VALUE"),
        ("url=http://x", "goes into --schema-registry-url"),
    ],
)
def test_a_wrong_property_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_property(text, Precedence.COMMAND_LINE, "--schema-registry-property")


@pytest.mark.parametrize("url", ["registry:8081", "http://", "https://u:horse@registry", "ftp://registry"])
def test_a_wrong_address_is_refused_and_its_password_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="--schema-registry-url: ") as caught:
        url_setting(url, Precedence.COMMAND_LINE, "--schema-registry-url")
    assert "horse" not in str(caught.value)


def test_a_request_has_an_end() -> None:
    config: ClientConfig = registry_config([])
    assert client_properties(config) == {"timeout": 10.0, "max.retries": 0}

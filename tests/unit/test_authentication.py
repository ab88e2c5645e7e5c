"""Authentication by tokens: which settings fit together, tokens for Amazon MSK, and what failures are said to be."""

import base64
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from confluent_kafka import KafkaError, KafkaException, Producer

from tests.mounted import Secret, pem
from workers.config import ClientConfig, Precedence, Setting, read_properties_file
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.kafka import aws
from workers.kafka.authentication import complete, plaintext_warning
from workers.kafka.client import ClientState, create_client
from workers.kafka.credentials import CredentialsWatch, read_credentials

QUIET = {"log_level": 0}
OIDC = {
    "security.protocol": "sasl_plaintext",
    "sasl.mechanism": "OAUTHBEARER",
    "sasl.oauthbearer.token.endpoint.url": "http://127.0.0.1:1/token",
    "sasl.oauthbearer.client.id": "me",
    "sasl.oauthbearer.client.secret": "hunter2",
}
MSK = {"security.protocol": "sasl_ssl", "sasl.mechanism": "AWS_MSK_IAM", "aws.region": "eu-west-1"}


def config(values: dict[str, str], files: dict[str, Path] | None = None) -> ClientConfig:
    places = files or {}
    settings = [
        Setting(name, value, Precedence.COMMAND_LINE, f"--{name}", places.get(name)) for name, value in values.items()
    ]
    return ClientConfig([], [*settings, *complete(ClientConfig([], settings))])


def without(values: dict[str, str], name: str, **others: str) -> dict[str, str]:
    return {key: value for key, value in values.items() if key != name} | {
        key.replace("_", "."): value for key, value in others.items()
    }


@pytest.fixture(autouse=True)
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine is known to AWS."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/no/such/file")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/no/such/file")
    aws._credentials.cache_clear()


@pytest.fixture
def aws_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (without(OIDC, "sasl.mechanism"), ["--sasl.oauthbearer", "--sasl-mechanism OAUTHBEARER", "leave this out"]),
        (without(OIDC, "", sasl_mechanism="PLAIN"), ["--sasl.oauthbearer", "--sasl-mechanism OAUTHBEARER"]),
        (without(MSK, "", sasl_mechanism="PLAIN"), ["--aws.region", "--sasl-mechanism AWS_MSK_IAM"]),
        (without(OIDC, "security.protocol"), ["--sasl.mechanism", "plaintext", "--security-protocol sasl_ssl"]),
        (without(OIDC, "", security_protocol="ssl"), ["security protocol ssl", "sasl_ssl"]),
        (without(MSK, "", security_protocol="sasl_plaintext"), ["sasl_plaintext", "sasl_ssl"]),
        (without(OIDC, "", sasl_username="me"), ["--sasl.username", "authenticates with a token"]),
        (without(MSK, "", sasl_password="hunter2"), ["--sasl.password", "authenticates with a token"]),
        (without(OIDC, "sasl.oauthbearer.client.id"), ["--oauth-client-id"]),
        (without(OIDC, "sasl.oauthbearer.client.secret"), ["--oauth-client-secret-file", "KAFKA_OAUTH_CLIENT_SECRET"]),
        (without(OIDC, "sasl.oauthbearer.token.endpoint.url"), ["--sasl.mechanism", "--oauth-token-url"]),
        (OIDC | {"sasl.oauthbearer.token.endpoint.url": "login/hunter2"}, ["address of a token endpoint", "https://"]),
        (without(MSK, "aws.region"), ["--aws-region", "AWS_REGION"]),
        ({"ssl.ca.location": "/nope"}, ["--ssl.ca.location", "plaintext has no TLS", "--security-protocol ssl,"]),
        (
            {"ssl.key.location": "k", "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"},
            ["--ssl.key.location", "sasl_plaintext has no TLS", "--security-protocol sasl_ssl,"],
        ),
        ({"sasl.username": "me"}, ["--sasl.username", "plaintext has no SASL", "--security-protocol sasl_plaintext,"]),
        (
            {"sasl.mechanism": "PLAIN", "security.protocol": "ssl"},
            ["--sasl.mechanism", "ssl has no SASL", "--security-protocol sasl_ssl,"],
        ),
        (without(OIDC, "", ssl_ca_location="ca"), ["--ssl.ca.location", "--security-protocol sasl_ssl,"]),
        ({"bootstrap.servers": "a,SSL://b:1"}, ["--bootstrap.servers", "--security-protocol ssl, or leave ssl:// out"]),
        ({"bootstrap.servers": "http://b"}, ["--bootstrap.servers", "http://, and", "plaintext; leave http:// out"]),
        (MSK | {"aws.region": "Ireland"}, ["--aws.region", "'Ireland'", "eu-west-1"]),
        (MSK | {"sasl.oauthbearer.scope": "x"}, ["--sasl.oauthbearer.scope", "AWS_MSK_IAM makes its token"]),
    ],
)
def test_settings_that_do_not_fit_together_are_named_with_the_remedy(values: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        config(values)

    text = str(raised.value)
    assert "\n" not in text
    assert "hunter2" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("protocol", ["sasl_plaintext", "SASL_SSL"])
def test_a_forgotten_mechanism_is_said_with_its_option_and_the_choices(protocol: str) -> None:
    with pytest.raises(ConfigError) as raised:
        create_client(Producer, config({"security.protocol": protocol, "sasl.username": "me"}), QUIET)

    assert str(raised.value) == (
        f"--security.protocol: security protocol {protocol} needs a SASL mechanism; add --sasl-mechanism with "
        "SCRAM-SHA-512, SCRAM-SHA-256, PLAIN, OAUTHBEARER or AWS_MSK_IAM"
    )


@pytest.mark.parametrize("mechanism", ["FOO", "scram-sha-512", "GSSAPI", "", "PLAIN,OAUTHBEARER"])
def test_a_mechanism_that_librdkafka_does_not_have_is_named_with_the_choices(mechanism: str) -> None:
    values = {"security.protocol": "sasl_plaintext", "sasl.mechanism": mechanism}
    with pytest.raises(ConfigError) as raised:
        create_client(Producer, config(values), QUIET)

    assert str(raised.value) == (
        f"--sasl.mechanism: librdkafka does not support SASL mechanism {mechanism!r}; use "
        "SCRAM-SHA-512, SCRAM-SHA-256, PLAIN, OAUTHBEARER or AWS_MSK_IAM"
    )


@pytest.mark.parametrize("name", ["sasl.mechanism", "sasl.mechanisms"])
def test_a_mechanism_of_a_properties_file_is_used(tmp_path: Path, name: str) -> None:
    file = tmp_path / "client.properties"
    file.write_text(f"security.protocol=sasl_plaintext\n{name}=PLAIN\nsasl.username=me\nsasl.password=hunter2\n")

    create_client(Producer, ClientConfig([], read_properties_file(file)), QUIET).close()


def test_a_token_url_is_enough_for_librdkafka_to_ask_for_tokens() -> None:
    made = config(OIDC)

    assert made.get("sasl.oauthbearer.method") == "oidc"
    # Or else librdkafka looks at a path that not each system has.
    assert Path(made.get("https.ca.location")).exists()
    create_client(Producer, made, QUIET).close()


@pytest.mark.parametrize(
    "values", [{"enable.sasl.oauthbearer.unsecure.jwt": "true"}, {"sasl.oauthbearer.method": "oidc"}]
)
def test_other_ways_to_a_token_are_left_to_librdkafka(values: dict[str, str]) -> None:
    assert complete(ClientConfig([], [Setting(name, value, Precedence.FILE, "file") for name, value in {
        "security.protocol": "sasl_ssl", "sasl.mechanism": "OAUTHBEARER", **values,
    }.items()])) == []  # fmt: skip


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_the_region_is_that_of_the_pod_where_no_option_says_another(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "us-east-1")

    assert config(without(MSK, "aws.region")).settings["aws.region"].origin == f"variable {variable}"
    assert config(MSK).get("aws.region") == "eu-west-1"


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        (
            {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"},
            "--sasl.mechanism: PLAIN with security protocol sasl_plaintext sends the password unencrypted; "
            "use --security-protocol sasl_ssl",
        ),
        (
            OIDC,
            "--sasl.mechanism: OAUTHBEARER with security protocol sasl_plaintext sends the token unencrypted; "
            "use --security-protocol sasl_ssl",
        ),
        ({"security.protocol": "sasl_ssl", "sasl.mechanism": "PLAIN"}, None),
        (OIDC | {"security.protocol": "sasl_ssl"}, None),
        # It proves the password without sending it.
        ({"security.protocol": "sasl_plaintext", "sasl.mechanism": "SCRAM-SHA-512"}, None),
        ({"security.protocol": "plaintext"}, None),
    ],
)
def test_a_secret_that_is_sent_unencrypted_is_warned_of(values: dict[str, str], warning: str | None) -> None:
    assert plaintext_warning(config(values)) == warning


# The files


def test_a_changed_client_secret_and_a_changed_ca_of_the_endpoint_ask_for_a_new_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, ca = Secret(tmp_path / "client"), Secret(tmp_path / "ca")
    secret.write({"secret": b"old\n"})
    ca.write({"ca.crt": pem(trustme.CA())})
    path = secret.directory / "secret"
    made = config(OIDC | {"https.ca.location": str(ca.directory)}, {"sasl.oauthbearer.client.secret": path})
    state = ClientState()
    watch = CredentialsWatch(made, state)
    properties = watch.credentials.apply(made.properties())
    assert properties["sasl.oauthbearer.client.secret"] == "old"
    assert properties["https.ca.pem"].count("BEGIN CERTIFICATE") == 1
    assert "https.ca.location" not in properties
    create_client(Producer, made, QUIET, watch.credentials).close()

    monkeypatch.setattr("workers.kafka.credentials.INTERVAL_S", 0.0)
    secret.write({"secret": b"new\n"})
    assert watch.refresh(None) is True
    watch.renewed()
    ca.write({"ca.crt": pem(trustme.CA())})
    assert watch.refresh(None) is True
    watch.renewed()
    assert watch.refresh(None) is False
    assert state.renewals == {"ca": 1, "certificate": 0, "password": 1}


def test_the_certificates_of_the_system_are_left_to_librdkafka() -> None:
    assert read_credentials(config(OIDC)).endpoint_ca == ""


# Amazon MSK


def test_a_token_for_msk_is_a_signed_request_to_connect(aws_keys: None) -> None:
    token, expires_at = aws.MskTokens("eu-west-1")("")
    url = urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    query = parse_qs(url.query)

    assert (url.scheme, url.netloc) == ("https", "kafka.eu-west-1.amazonaws.com")
    assert query["Action"] == ["kafka-cluster:Connect"]
    assert query["X-Amz-Credential"][0].startswith("AKIDEXAMPLE/")
    assert query["X-Amz-Credential"][0].endswith("/eu-west-1/kafka-cluster/aws4_request")
    assert query["X-Amz-Expires"] == ["900"]
    assert len(query["X-Amz-Signature"][0]) == 64
    assert 800 < expires_at - time.time() <= 900


def test_a_client_for_msk_is_made_with_a_token_of_aws(aws_keys: None) -> None:
    create_client(Producer, config(MSK), QUIET).close()


def test_missing_aws_credentials_are_wrong_usage() -> None:
    with pytest.raises(ConfigError, match=r"no AWS credentials .* give the pod a role .* AWS_ACCESS_KEY_ID"):
        create_client(Producer, config(MSK), QUIET)


def test_an_sts_that_is_away_is_asked_again_and_then_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Clock:
        """Each pause is longer than half of the time that there is."""

        STEP_S = 0.6 * aws.START_S
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, _pause_s: float) -> None:
            self.now += self.STEP_S

    (tmp_path / "token").write_text("of the service account")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/worker")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    clock = Clock()
    monkeypatch.setattr(aws, "time", clock)
    with pytest.raises(WorkerError, match=r"AWS gives no credentials .*127\.0\.0\.1:1.* STS can be reached"):
        aws.MskTokens("eu-west-1")
    assert clock.now == 2 * Clock.STEP_S
    assert caplog.text.count("trying again") == 2


def test_why_a_token_could_not_be_renewed_is_told(monkeypatch: pytest.MonkeyPatch, aws_keys: None) -> None:
    """The binding tells only that the callback has raised."""
    tokens: list[aws.MskTokens] = []
    given: list[dict[str, Any]] = []
    told: list[KafkaError] = []

    class Client:
        def __init__(self, properties: dict[str, Any]) -> None:
            given.append(properties)
            tokens.append(properties["oauth_cb"])

    create_client(Client, config(MSK), {"error_cb": told.append})  # type: ignore[type-var]
    assert given[0]["sasl.mechanism"] == "OAUTHBEARER"
    assert "aws.region" not in given[0]
    tokens[0]("")

    def away(region: str) -> tuple[str, float]:
        raise OSError("STS is away")

    monkeypatch.setattr(aws, "sign", away)
    with pytest.raises(OSError, match="STS is away"):
        tokens[0]("")
    failure = "Failed to acquire SASL OAUTHBEARER token: OAuth callback raised exception"
    given[0]["error_cb"](KafkaError(KafkaError._AUTHENTICATION, failure))
    assert "AWS gives no credentials for AWS_MSK_IAM: STS is away; check the role" in told[0].str()
    state = ClientState()
    state.on_error(told[0])
    with pytest.raises(WorkerError, match=r"no token could be made.*STS is away") as raised:
        state.check()
    assert raised.value.code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("module", "properties"),
    [
        ("aws_msk_iam_sasl_signer", MSK),
        (
            "boto3",
            {
                "security.protocol": "sasl_ssl",
                "sasl.mechanism": "OAUTHBEARER",
                "sasl.oauthbearer.method": "oidc",
                "sasl.oauthbearer.metadata.authentication.type": "aws_iam",
                "sasl.oauthbearer.config": "region=eu-west-1,audience=kafka",
            },
        ),
    ],
)
def test_without_the_extra_its_command_is_told(
    monkeypatch: pytest.MonkeyPatch, module: str, properties: dict[str, str]
) -> None:
    for loaded in [name for name in sys.modules if name.startswith("confluent_kafka._oauthbearer")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ConfigError, match=r"extra 'aws'.* pip install 'kafka-workers\[aws\]'") as raised:
        create_client(Producer, config(properties), QUIET)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [SystemError("returned a result with an exception set"), None])
def test_a_token_that_the_binding_waited_for_in_vain_is_told(error: Exception | None) -> None:
    waited = KafkaException(KafkaError(KafkaError.SASL_AUTHENTICATION_FAILED, "OAuth token not set within 10 seconds"))

    class Client:
        def __init__(self, _properties: dict[str, Any]) -> None:
            raise error or waited

    with pytest.raises(ConfigError, match="sts:GetWebIdentityToken"):
        create_client(Client, config({}), {})  # type: ignore[type-var]


# Errors of librdkafka

NO_TOKEN = "Failed to acquire SASL OAUTHBEARER token: "


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (NO_TOKEN + '{"error": "invalid_client"}', "check the client id, the client secret"),
        (NO_TOKEN + "<html>\n\n<p>Unauthorized</p>", "check the client id, the client secret"),
        (NO_TOKEN + "SSL certificate problem: unable to get local issuer certificate", "--oauth-ca-location"),
        ('sasl_ssl://b:9098/1: SASL authentication error: {"status":"invalid_token"}', "the brokers refuse the token"),
        ("sasl_ssl://b:9098/1: SASL authentication error: [1a2b]: Access denied", "the AWS role"),
    ],
)
def test_a_token_that_is_refused_ends_a_worker_that_was_never_connected(reason: str, remedy: str) -> None:
    state = ClientState(config(OIDC), 180)
    state.on_error(KafkaError(KafkaError._AUTHENTICATION, reason))

    with pytest.raises(WorkerError) as raised:
        state.check()
    assert remedy in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.code == ExitCode.USAGE


@pytest.mark.parametrize(
    "reason",
    [
        "Failed to connect to 127.0.0.1:1 after 0 ms: Could not connect to server",
        "Could not resolve host: login",
        "Operation timed out after 20000 milliseconds with 0 bytes received",
    ],
)
def test_a_token_endpoint_that_is_away_ends_nothing(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    state = ClientState(config(OIDC), 180)
    state.on_error(KafkaError(KafkaError._AUTHENTICATION, NO_TOKEN + reason))
    state.check()

    assert "the token endpoint does not answer; check --oauth-token-url" in caplog.text


def test_a_refused_client_secret_of_a_mounted_file_is_tried_on(tmp_path: Path) -> None:
    secret = Secret(tmp_path / "client")
    secret.write({"secret": b"old"})
    state = ClientState(config(OIDC, {"sasl.oauthbearer.client.secret": secret.directory / "secret"}), 180)
    state.on_error(KafkaError(KafkaError._AUTHENTICATION, NO_TOKEN + '{"error": "invalid_client"}'))
    state.check()

    assert "authentication has failed" in (state.refused() or "")

"""Tokens for Amazon MSK with IAM access control, from the extra `aws`.

A token of MSK is the URL of a request `kafka-cluster:Connect` that is signed with AWS credentials (SigV4), and holds
for 15 minutes. It is no JWT. So librdkafka's and confluent-kafka's own ways to a token (OIDC, `aws_iam`), which give
JWTs, are not for MSK.
"""

import logging
import time
from functools import cache
from typing import Any

from workers.errors import ConfigError, WorkerError

log = logging.getLogger("workers")
# At the first token AWS is asked again for so long.
START_S = 10.0
PAUSE_S = 2.0
# Of STS and of the metadata services: botocore's own minute would hold up a client that is being made.
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 3, 5
_REMEDY = "check the role, its trust policy and that STS can be reached"


class _NoCredentialsError(Exception):
    """No place has AWS credentials, so another try would find none either."""


class MskTokens:
    """The `oauth_cb` of one client. `trouble` is why the last token could not be made, empty if it could."""

    def __init__(self, region: str) -> None:
        """Make the first token, as the client's constructor would wait 10 s for it and drop the reason of a failure.

        Raises ConfigError without the extra and where there are no AWS credentials, WorkerError where AWS gives none.
        """
        self.trouble = ""
        self._region = region
        self._first: tuple[str, float] | None = self._begin()

    def __call__(self, _config: str) -> tuple[str, float]:
        """Return a token, and when it expires as Unix time in seconds. Called by a thread of librdkafka."""
        first, self._first = self._first, None
        if first is not None:
            return first
        try:
            token = sign(self._region)
        except Exception as error:
            self.trouble = _reason(error)
            raise
        self.trouble = ""
        return token

    def _begin(self) -> tuple[str, float]:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return sign(self._region)
            except ModuleNotFoundError:
                raise ConfigError(
                    "AWS_MSK_IAM needs the extra 'aws': pip install 'kafka-workers[aws]', or an image with it: the tag "
                    "X.Y.Z-full of a release, or --build-arg EXTRAS=aws"
                ) from None
            except _NoCredentialsError as error:
                raise ConfigError(_reason(error)) from None
            except Exception as error:
                if time.monotonic() > deadline:
                    raise WorkerError(_reason(error)) from None
                log.warning("%s; trying again", _reason(error))
            time.sleep(PAUSE_S)


def sign(region: str) -> tuple[str, float]:
    """Return a new token, and when it expires as Unix time in seconds.

    Raises ModuleNotFoundError without the extra, and what botocore raises.
    """
    from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
    from botocore.credentials import CredentialProvider

    class Provider(CredentialProvider):  # type: ignore[misc]  # botocore has no types
        def load(self) -> Any:
            return _credentials(region).get_frozen_credentials()

    token, expires_ms = MSKAuthTokenProvider.generate_auth_token_from_credentials_provider(region, Provider())
    return token, expires_ms / 1000


@cache
def _credentials(region: str) -> Any:
    """The credentials of the process, which botocore renews before they expire; all clients share them."""
    from botocore.config import Config
    from botocore.exceptions import PartialCredentialsError, ProfileNotFound
    from botocore.session import Session

    session = Session()
    session.set_config_variable("region", region)
    session.set_default_client_config(
        Config(connect_timeout=_CONNECT_TIMEOUT_S, read_timeout=_READ_TIMEOUT_S, retries={"total_max_attempts": 2})
    )
    try:
        credentials = session.get_credentials()
    except (PartialCredentialsError, ProfileNotFound) as error:
        raise _NoCredentialsError(str(error)) from None
    if credentials is None:
        raise _NoCredentialsError("there are none in the environment, in files, or of a role")
    return credentials


def _reason(error: Exception) -> str:
    if isinstance(error, _NoCredentialsError):
        return (
            f"no AWS credentials for AWS_MSK_IAM: {error}; give the pod a role (IRSA, Pod Identity), or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return f"AWS gives no credentials for AWS_MSK_IAM: {' '.join(str(error).split())}; {_REMEDY}"

"""Secrets as kubelet mounts them, and certificates that are replaced."""

from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


class Secret:
    """A mounted Secret: each file is a link through `..data`, which kubelet swaps when the Secret changes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._versions = 0
        directory.mkdir()

    def write(self, files: dict[str, bytes]) -> None:
        """Replace all files at once."""
        self._versions += 1
        version = self.directory / f"..{self._versions}"
        version.mkdir()
        for name, content in files.items():
            (version / name).write_bytes(content)
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")
        (self.directory / "..new").symlink_to(version.name)
        (self.directory / "..new").rename(self.directory / "..data")
        for link in self.directory.iterdir():
            if not link.name.startswith("..") and link.name not in files:
                link.unlink()


def pem(authority: trustme.CA) -> bytes:
    """The certificate of a CA."""
    return authority.cert_pem.bytes()


def broker_store(authority: trustme.CA) -> bytes:
    """The key and the certificate of brokers on loopback, as Kafka reads them: it knows PKCS #8 only."""
    issued = authority.issue_cert("localhost", common_name="localhost", organization_unit_name="brokers")
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pkcs8 + b"".join(each.bytes() for each in issued.cert_chain_pems)


def client_pair(authority: trustme.CA) -> dict[str, bytes]:
    """The certificate of a client and its key, under the names that Strimzi gives them."""
    issued = authority.issue_cert("worker")
    return {"user.crt": issued.cert_chain_pems[0].bytes(), "user.key": issued.private_key_pem.bytes()}

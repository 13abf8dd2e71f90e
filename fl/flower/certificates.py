"""Certificates and keys of a deployment: TLS of the SuperLink, and authentication of SuperNodes.

DIR/ca.crt        the authority's certificate, for SuperLink, SuperNodes and `flwr run`    DIR/ca.key      its key
DIR/server.crt    the SuperLink's certificate, signed by the authority                     DIR/server.key  its key
DIR/node-0        private key of SuperNode 0 (OpenSSH, NIST P-384)     DIR/node-0.pub      its public key
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from fl.errors import ConfigError
from fl.storage.place import check_folder

LOCAL = ("localhost", "127.0.0.1")  # names under which a SuperLink is always reached on its own machine
PRIVATE = 0o600  # mode of files with keys
OFF = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")


def make_certificates(directory: Path, hosts: Sequence[str] = (), nodes: int = 0, days: int = 365) -> list[Path]:
    """Write certificates and keys to a folder; returns the files. Nothing is overwritten.

    Args:
        directory: The folder; it is created with mode 0700 if it does not exist.
        hosts: Names or IP addresses under which other machines reach the SuperLink.
        nodes: Number of SuperNodes to make a key pair for.
        days: Days for which the certificates are valid, 1 or more.

    Raises:
        ConfigError: one of the files exists, a host is no name of a machine, or the folder cannot be made.
    """
    check_folder("DIR", directory)
    names = _alternative_names(hosts)
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _authority(authority_key, days)
    server = _signed(names, server_key, authority, authority_key, days)
    contents = {
        "ca.crt": authority.public_bytes(Encoding.PEM),
        "ca.key": _pem(authority_key),
        "server.crt": server.public_bytes(Encoding.PEM),
        "server.key": _pem(server_key),
    }
    for number in range(nodes):
        key = ec.generate_private_key(ec.SECP384R1())
        contents[f"node-{number}"] = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        contents[f"node-{number}.pub"] = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    files = {directory / name: content for name, content in contents.items()}
    if existing := [file.name for file in files if os.path.lexists(file)]:
        raise ConfigError("DIR", f"{directory} holds {', '.join(existing)} already; name a new folder")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file, content in files.items():
        public = file.suffix in (".crt", ".pub")
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644 if public else PRIVATE)
        with open(handle, "wb") as opened:
            opened.write(content)
    return list(files)


def connection(directory: Path, host: str) -> str:
    """Return the SuperLink connection of `flwr run`, TOML for Flower's config.toml; its paths must be absolute."""
    return (
        f'[superlink.my-superlink]\naddress = "{host}:8000"\n'
        f"root-certificates = {json.dumps(str((directory / 'ca.crt').absolute()))}\n"
    )


def _alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Return the names for which the SuperLink's certificate is valid."""
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys((*LOCAL, *hosts)):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
            continue
        except ValueError:
            pass
        if not host or not host.isascii() or any(not (c.isalnum() or c in ".-*") for c in host):
            raise ConfigError(
                "--host", f"{host!r} is neither the name of a machine nor an IP address; give it without port and path"
            )
        names.append(x509.DNSName(host))
    return names


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of other machines may be behind
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _authority(key: ec.EllipticCurvePrivateKey, days: int) -> x509.Certificate:
    """Return the certificate of a new authority, signed by itself."""
    name, public = _name("fl deployment CA"), key.public_key()
    usage = x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **dict.fromkeys(OFF, False))
    return (
        _builder(name, name, public, public, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _signed(
    names: Sequence[x509.GeneralName],
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    """Return a server's certificate for some names, signed by the authority."""
    return (
        _builder(_name("SuperLink"), authority.subject, key.public_key(), signer.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

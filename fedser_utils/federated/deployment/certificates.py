"""Keys and certificates of a deployment: a CA, the server's certificate, a key pair per client.

A SuperNode trusts a server whose certificate the CA signed; the SuperLink trusts a SuperNode whose
public key is registered. ``make`` fills a folder and never overwrites a file. A client gets
``ca.crt`` and its ``.key``, nothing else; ``ca.key`` goes nowhere. A client may also make its key
itself (``ssh-keygen -t ecdsa -b 384``) and send the ``.pub``.
"""

from __future__ import annotations

import datetime
import inspect
import ipaddress
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedser_utils.core import cli
from fedser_utils.core.errors import InputError
from fedser_utils.core.settings import client_name

ALWAYS = ("localhost", "127.0.0.1")  # a SuperLink's own processes reach it there
VALID = datetime.timedelta(days=3 * 365)
LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.IGNORECASE)
LOADERS = {PrivateFormat.PKCS8: load_pem_private_key, PrivateFormat.OpenSSH: load_ssh_private_key}


def make(folder: Path, *, clients: int, hosts: Sequence[str] = ()) -> Path:
    """Write those of ``ca.crt``, ``ca.key``, ``server.crt``, ``server.key`` and the clients'
    ``client-00.key``, ``client-00.pub``, ... that are missing. Returns the folder.

    clients: their number. hosts: names and IP addresses at which the server is reached.
    Raises InputError where an existing server certificate does not cover the hosts.
    """
    if not 0 <= clients <= 10_000:
        raise InputError(f"clients {clients} must be between 0 and 10000")
    names = [_general_name(host) for host in dict.fromkeys((*ALWAYS, *hosts))]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "server.crt").exists():
        _make_server(folder, names)
    _check_server(folder / "server.crt", names)
    for client in range(clients):
        path = folder / f"{client_name(client)}.key"
        public = _key(path, PrivateFormat.OpenSSH).public_key()
        line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        _write(path.with_suffix(".pub"), line + f" {path.stem}\n".encode())
    return folder


def _make_server(folder: Path, names: Sequence[x509.GeneralName]) -> None:
    """Write the server's certificate and key, and before them the CA's."""
    if (folder / "ca.crt").exists() and not (folder / "ca.key").exists():
        raise InputError(f"{folder / 'ca.key'} is missing: it must sign the server's certificate")
    ca = _key(folder / "ca.key", PrivateFormat.PKCS8)
    if not (folder / "ca.crt").exists():
        usage = _usage(key_cert_sign=True, crl_sign=True)
        authority = x509.BasicConstraints(ca=True, path_length=0)
        _write(folder / "ca.crt", _certificate("fedser CA", ca, None, ca, [authority, usage]))
    issuer = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    key = _key(folder / "server.key", PrivateFormat.PKCS8)
    extensions = [
        x509.BasicConstraints(ca=False, path_length=None),
        _usage(digital_signature=True),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName(names),
    ]
    _write(folder / "server.crt", _certificate("fedser server", key, issuer, ca, extensions))


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    ca: ec.EllipticCurvePrivateKey,
    extensions: Sequence[x509.ExtensionType],
) -> bytes:
    """Return a certificate for ``key`` in PEM, signed by ``ca``; self-signed without an issuer."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(name if issuer is None else issuer.subject, name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()), False)
    )
    for extension in extensions:
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical)
    return builder.sign(ca, hashes.SHA384()).public_bytes(Encoding.PEM)


def _usage(**allowed: bool) -> x509.KeyUsage:
    none = dict.fromkeys(inspect.signature(x509.KeyUsage).parameters, False)
    return x509.KeyUsage(**(none | allowed))


def _check_server(path: Path, names: Sequence[x509.GeneralName]) -> None:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    covered = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if missing := [str(name.value) for name in names if name not in covered]:
        raise InputError(
            f"{path} does not cover {', '.join(missing)}; remove it and server.key to renew it"
        )


def _key(path: Path, form: PrivateFormat) -> ec.EllipticCurvePrivateKey:
    """Return the P-384 key in a file, which is written first if it is missing."""
    if not path.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        _write(path, key.private_bytes(Encoding.PEM, form, NoEncryption()), mode=0o600)
    return LOADERS[form](path.read_bytes(), None)


def _write(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file unless it exists."""
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not all(map(LABEL.fullmatch, host.split("."))):
        raise InputError(f"host {host!r} is neither a host name nor an IP address")
    return x509.DNSName(host)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = cli.Parser(prog="deploy/certificates", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("deploy/keys"))
    parser.add_argument("--clients", type=int, required=True, metavar="N")
    parser.add_argument(
        "--host", action="append", default=[], dest="hosts", help="of the server; repeatable"
    )
    return cli.run(parser, make, arguments)


if __name__ == "__main__":
    sys.exit(main())

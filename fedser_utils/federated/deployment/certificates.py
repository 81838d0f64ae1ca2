"""Who may talk to whom: a CA of our own, the server's certificate, one key pair per client.

A SuperNode trusts a server whose certificate the CA signed; the SuperLink trusts a SuperNode whose
public key was registered. ``make`` fills a folder and never overwrites a file. Only ``ca.crt`` and
a client's own ``.key`` go to that client; ``ca.key`` goes nowhere. A client who would rather make
his own key (``ssh-keygen -t ecdsa -b 384``) sends the ``.pub``.
"""

from __future__ import annotations

import datetime
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
    """Make what is missing of ``ca.crt``, ``ca.key``, ``server.crt``, ``server.key`` and the
    clients' ``client-00.key``, ``client-00.pub`` and so on. Returns the folder.

    clients: how many. hosts: names and IP addresses at which the server is reached.
    Raises InputError where the server's certificate that is there does not cover the hosts.
    """
    if not 0 <= clients <= 10_000:
        raise InputError(f"clients {clients} must be between 0 and 10000")
    wanted = [_general_name(host) for host in dict.fromkeys((*ALWAYS, *hosts))]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "server.crt").exists():
        _make_server(folder, wanted)
    _check_server(folder / "server.crt", wanted)
    for client in range(clients):
        path = folder / f"{client_name(client)}.key"
        public = _key(path, PrivateFormat.OpenSSH).public_key()
        line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        _write(path.with_suffix(".pub"), line + f" {path.stem}\n".encode())
    return folder


def _make_server(folder: Path, wanted: Sequence[x509.GeneralName]) -> None:
    """The server's certificate, and before it the CA's."""
    if (folder / "ca.crt").exists() and not (folder / "ca.key").exists():
        raise InputError(f"{folder / 'ca.key'} is missing: it must sign the server's certificate")
    ca = _key(folder / "ca.key", PrivateFormat.PKCS8)
    if not (folder / "ca.crt").exists():
        usage = _usage(key_cert_sign=True, crl_sign=True)
        authority = x509.BasicConstraints(ca=True, path_length=0)
        own = _certificate("fedser CA", ca, None, ca, [authority, usage])
        _write(folder / "ca.crt", own)
    issuer = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    key = _key(folder / "server.key", PrivateFormat.PKCS8)
    extensions = [
        x509.BasicConstraints(ca=False, path_length=None),
        _usage(digital_signature=True),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName(wanted),
    ]
    _write(folder / "server.crt", _certificate("fedser server", key, issuer, ca, extensions))


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    ca: ec.EllipticCurvePrivateKey,
    extensions: Sequence[x509.ExtensionType],
) -> bytes:
    """A certificate for ``key`` as PEM, signed by ``ca``; the CA's own if there is no issuer."""
    called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(called if issuer is None else issuer.subject, called)
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
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**(dict.fromkeys(names, False) | allowed))


def _check_server(path: Path, wanted: Sequence[x509.GeneralName]) -> None:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if missing := [str(host.value) for host in wanted if host not in names]:
        raise InputError(
            f"{path} does not cover {', '.join(missing)}; "
            "remove it and server.key to have it made anew"
        )


def _key(path: Path, form: PrivateFormat) -> ec.EllipticCurvePrivateKey:
    """The P-384 key in a file, made if it is not there."""
    if not path.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        _write(path, key.private_bytes(Encoding.PEM, form, NoEncryption()), mode=0o600)
    return LOADERS[form](path.read_bytes(), None)


def _write(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file that is not there yet; leave one that is."""
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not all(map(LABEL.fullmatch, host.split("."))):
        raise InputError(f"host {host!r} is no host name and no IP address")
    return x509.DNSName(host)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = cli.Parser(prog="deploy/certificates", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("deploy/keys"))
    parser.add_argument("--clients", type=int, required=True, metavar="N")
    parser.add_argument(
        "--host", action="append", default=[], dest="hosts", help="of the server; repeatable"
    )
    return cli.run(parser, make, arguments)


if __name__ == "__main__":
    sys.exit(main())

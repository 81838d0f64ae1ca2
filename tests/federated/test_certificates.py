"""The CA, the server's certificate, the clients' keys."""

import ipaddress
import socket
import ssl
import stat
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedser_utils.core.errors import InputError
from fedser_utils.federated.deployment import certificates


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return certificates.make(folder, clients=2, hosts=["gate", "192.0.2.7"])


def handshake(server, client, name):
    """What the client says of a server with these keys, reached under this name; None if well."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.crt", server / "server.key")
    left, right = socket.socketpair()

    def serve():
        try:
            context.wrap_socket(left, server_side=True).close()
        except OSError:
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        trust = ssl.create_default_context(cafile=client / "ca.crt")
        trust.verify_flags |= ssl.VERIFY_X509_STRICT
        trust.wrap_socket(right, server_hostname=name).close()
    except ssl.SSLCertVerificationError as error:
        right.close()
        return error.verify_message
    finally:
        thread.join()


def test_what_is_made_and_who_may_read_it(keys):
    private = {"ca.key", "server.key", "client-00.key", "client-01.key"}
    public = {"ca.crt", "server.crt", "client-00.pub", "client-01.pub"}
    assert {path.name for path in keys.iterdir()} == private | public
    for name in private:
        assert stat.S_IMODE((keys / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "gate", "192.0.2.7"])
def test_the_server_is_trusted_under_its_names(keys, host):
    assert handshake(keys, keys, host) is None


def test_the_server_is_not_trusted_under_other_names_or_by_another_ca(keys, tmp_path):
    assert "mismatch" in handshake(keys, keys, "elsewhere")
    certificates.make(tmp_path, clients=0)
    assert handshake(keys, tmp_path, "localhost") is not None
    assert handshake(tmp_path, keys, "localhost") is not None


def test_ip_addresses_are_ip_addresses(keys):
    certificate = x509.load_pem_x509_certificate((keys / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "gate"]
    assert ipaddress.ip_address("192.0.2.7") in names.get_values_for_type(x509.IPAddress)


def test_a_clients_pair_is_one_p384_key(keys):
    private = serialization.load_ssh_private_key((keys / "client-00.key").read_bytes(), None)
    public = serialization.load_ssh_public_key((keys / "client-00.pub").read_bytes())
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public
    assert (keys / "client-00.pub").read_bytes() != (keys / "client-01.pub").read_bytes()


def test_adding_clients_changes_no_file(tmp_path):
    certificates.make(tmp_path, clients=1, hosts=["gate"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    certificates.make(tmp_path, clients=2)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"client-01.key", "client-01.pub"} == after.keys() - before.keys()
    assert before.items() <= after.items()


def test_hosts_that_the_certificate_does_not_cover(keys):
    with pytest.raises(InputError, match=r"server\.crt does not cover far\.away; remove it"):
        certificates.make(keys, clients=2, hosts=["gate", "far.away"])


def test_a_new_server_certificate_needs_the_cas_key(tmp_path):
    certificates.make(tmp_path, clients=0)
    for name in ("ca.key", "server.crt"):
        (tmp_path / name).unlink()
    with pytest.raises(InputError, match=r"ca\.key is missing"):
        certificates.make(tmp_path, clients=0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--clients", "-1"], "clients -1 must be"),
        (["--clients", "x"], "--clients"),
        (["--clients", "1", "--host", "a b"], "host 'a b' is neither a host name"),
        ([], "--clients"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, capsys, arguments, word):
    assert certificates.main([*arguments, "--folder", str(tmp_path / "new")]) == 1
    said = capsys.readouterr().err
    assert word in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()

"""A file that is searched by its URL: from the hosts that were allowed, and from nowhere else."""

from __future__ import annotations

import datetime
import http.server
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from batchproj.errors import UsageError
from batchproj.serve import urls
from batchproj.serve.urls import fetch, is_public

HOST = "pictures.example"
ADDRESSES = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.9.9"),
    *("192.168.0.1", "192.168.255.255", "169.254.169.254", "169.254.0.1", "100.64.0.1", "100.127.255.254"),
    *("192.0.0.1", "192.0.2.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *("239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254"),
    *("ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::127.0.0.1", "2002:7f00:1::"),
    *("64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2001:db8::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "fe80::1%eth0"),
    *("2002:a9fe:a9fe::", "100::1"),
]
URLS = [
    *(
        "http://pictures.example/a.png",
        "ftp://pictures.example/a.png",
        "file:///etc/passwd",
        "gopher://pictures.example",
    ),
    *("https://127.0.0.1/a", "https://[::1]/a", "https://2130706433/a", "https://0x7f.1/a", "https://0177.0.0.1/a"),
    *("https://localhost/a", "https://169.254.169.254/latest/meta-data", "https://evil.example/a"),
    *(
        "https://pictures.example@evil.example/",
        "https://user:pass@pictures.example/",
        "https://user@pictures.example/",
    ),
    *("https://pictures.example:8443/", "https://pictures.example:22/", "https://pictures.example.evil.example/"),
    *(
        "https://evil.example#pictures.example",
        "https://evil.example?pictures.example",
        "https://pictures.example\\@evil/",
    ),
    *("https:///a", "https://", "//pictures.example/a", "", "data:image/png;base64,AA", "javascript:alert(1)"),
    *("https://pictures.example/a\r\nHost: evil", "https://pictures.example/a b", "https://pictures.exa\uff4dple/"),
    *(
        "https://pictures.example\0.evil/",
        "https://pictures.example:99999/",
        "https://[::1",
        "HTTPS:/pictures.example",
    ),
]


@pytest.fixture
def no_connection(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Whoever is connected to is listed, and not reached."""
    tried: list[object] = []

    def connect(address: object, timeout: float) -> socket.socket:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    return tried


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    found = [(socket.AF_INET6 if ":" in each else socket.AF_INET, 1, 6, "", (each, 443)) for each in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_host_that_leads_inside_is_not_asked(
    address: str, no_connection: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for addresses in ([address], ["93.184.216.34", address]):  # one of several is enough
        resolve_to(monkeypatch, *addresses)
        with pytest.raises(UsageError, match="not public"):
            fetch(f"https://{HOST}/a.png", [HOST], 1_000)
    assert no_connection == []


def test_there_are_forty_of_them() -> None:
    assert len(set(ADDRESSES)) >= 40


def test_public_addresses_are_public() -> None:
    assert all(map(is_public, ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946"]))


@pytest.mark.parametrize("url", URLS)
def test_another_url_is_refused_before_anything_is_looked_up(
    url: str, no_connection: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **_: looked_up.append(asked))
    with pytest.raises(UsageError, match=r"^url: "):
        fetch(url, [HOST], 1_000)
    assert (looked_up, no_connection) == ([], [])


def test_without_hosts_it_is_off() -> None:
    with pytest.raises(UsageError, match="search by URL is off"):
        fetch(f"https://{HOST}/a.png", [], 1_000)


def test_the_connection_goes_to_the_address_that_was_looked_at(
    no_connection: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["93.184.216.34", "127.0.0.1", "127.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", (next(answers), 443))])
    with pytest.raises(UsageError, match="did not give the file"):
        fetch(f"https://{HOST}/a.png", [HOST], 1_000)
    assert no_connection == [("93.184.216.34", 443)]


# --- a real server, in whose certificate the host stands --------------------------------------------


DRIPPED: queue.Queue[str] = queue.Queue()
"""How each of the drips ended."""
DRIPS = {"/drip/continue": b"HTTP/1.1 100 Continue\r\n\r\n", "/drip/headers": b"x", "/drip/body": b"x"}


class _Pictures(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "https://127.0.0.1/secret")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path in DRIPS:
            self._drip(DRIPS[self.path])
            return
        body = b"x" * 100_000 if self.path == "/large" else f"{self.headers['Host']} {self.path}".encode()
        self.send_response(200)
        if self.path != "/large":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _drip(self, piece: bytes) -> None:
        """Nobody waits long for any of it, and for all of it ten seconds."""
        try:
            if self.path == "/drip/body":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
            elif self.path == "/drip/headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(200):
                self.wfile.write(piece)
                time.sleep(0.05)
            DRIPPED.put("to its end")
        except OSError:
            DRIPPED.put("cut off")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


def certificate(
    name: str, key: ec.EllipticCurvePrivateKey, authority: ec.EllipticCurvePrivateKey, is_authority: bool
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    subject, issuer = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in (name, "authority"))
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(authority, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssl.SSLContext]:
    """What believes the certificate of a server that HOST leads to, by a public address."""
    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*plain))
    (tmp_path / "ca.pem").write_bytes(certificate("authority", authority, authority, is_authority=True))
    (tmp_path / "cert.pem").write_bytes(certificate(HOST, key, authority, is_authority=False))
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as serving:
        serving.socket = ours.wrap_socket(serving.socket, server_side=True)
        threading.Thread(target=serving.serve_forever, daemon=True).start()

        def to_us(address: tuple[str, int], timeout: float) -> socket.socket:
            if address == ("93.184.216.35", 443):
                raise ConnectionRefusedError
            assert address == ("93.184.216.34", 443)
            reached = socket.socket()
            reached.settimeout(timeout)
            reached.connect(("127.0.0.1", serving.server_port))
            return reached

        resolve_to(monkeypatch, "93.184.216.34")
        monkeypatch.setattr(urls.socket, "create_connection", to_us)
        yield ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        serving.shutdown()


def test_a_file_is_fetched_with_its_name(server: ssl.SSLContext) -> None:
    data, name = fetch(f"https://{HOST}/a/frog.png?size=1", [HOST], 1_000, server)
    assert (data, name) == (f"{HOST} /a/frog.png?size=1".encode(), "frog.png")


@pytest.mark.parametrize(("path", "said"), [("moved", "answered 302"), ("large", "larger than 1,000 bytes")])
def test_no_redirect_is_followed_and_nothing_large_is_read(server: ssl.SSLContext, path: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fetch(f"https://{HOST}/{path}", [HOST], 1_000, server)


def test_a_certificate_of_nobody_is_not_believed(server: ssl.SSLContext) -> None:
    with pytest.raises(UsageError, match="SSLCertVerificationError"):
        fetch(f"https://{HOST}/a.png", [HOST], 1_000)


@pytest.mark.parametrize("path", DRIPS)
def test_what_comes_a_little_at_a_time_is_cut_off(
    server: ssl.SSLContext, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urls, "TIMEOUT_S", 0.5)
    with pytest.raises(UsageError, match=r"took longer than 0\.5 s"):
        fetch(f"https://{HOST}{path}", [HOST], 1_000, server)
    assert DRIPPED.get(timeout=30) == "cut off"


def test_a_name_is_not_looked_up_for_ever(no_connection: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: go_on.wait(30) and [])
    monkeypatch.setattr(urls, "TIMEOUT_S", 0.1)
    with pytest.raises(UsageError, match=r"took longer than 0\.1 s"):
        fetch(f"https://{HOST}/a.png", [HOST], 1_000)
    go_on.set()
    assert no_connection == []


def test_the_next_address_is_asked_where_one_does_not_answer(
    server: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "93.184.216.35", "93.184.216.34")
    assert fetch(f"https://{HOST}/a.png", [HOST], 1_000, server)[1] == "a.png"

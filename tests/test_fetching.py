"""Downloads against a local server that does all that servers do."""

import gzip
import hashlib
import http.server
import os
import re
import ssl
import subprocess
import sys
import threading

import pytest

from pydmobilenet import catalog, fetching
from pydmobilenet.checkpoints import weights
from pydmobilenet.errors import BadFileError, MissingFileError, UnusableError

CONTENT = bytes(range(256)) * 4000
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def source(server):
    server.files["/file"] = CONTENT
    return fetching.Source(f"{server.url}/file", DIGEST)


def test_a_file_arrives_whole_and_leaves_nothing_else(source, tmp_path):
    target = fetching.fetch([source], tmp_path / "file")
    assert target.read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", ["sha256", "sha1", "md5"])
def test_digests_are_those_of_the_standard_library(kind, tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    assert fetching.digest(tmp_path / "file", kind) == f"{kind}:{hashlib.new(kind, CONTENT).hexdigest()}"


def test_compute_git_digests_as_git(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    answer = subprocess.run(["git", "hash-object", tmp_path / "file"], capture_output=True, text=True, check=True)
    assert fetching.digest(tmp_path / "file", "git") == f"git:{answer.stdout.strip()}"


def test_verify_names_the_file_and_both_digests(tmp_path):
    (tmp_path / "file").write_bytes(b"other")
    with pytest.raises(BadFileError, match=f"{tmp_path}/file .*{DIGEST}"):
        fetching.verify(tmp_path / "file", DIGEST)


@pytest.mark.parametrize(
    ("fault", "words"),
    [("breaks off", "IncompleteRead|broken"), ("error page", "sent another file"), ("silent", "timed out|closed")],
)
def test_a_bad_answer_is_named_and_nothing_is_put_in_place(source, server, tmp_path, monkeypatch, fault, words):
    monkeypatch.setattr(fetching, "TIMEOUT", (1, 1))
    server.fault = fault
    with pytest.raises(MissingFileError, match=words):
        fetching.fetch([source], tmp_path / "file")
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [("has no end", f"has more than the {len(CONTENT)} bytes of file"), ("claims more", "IncompleteRead|broken")],
)
def test_no_more_is_taken_than_the_file_can_have(fault, words, source, server, tmp_path):
    limit = len(CONTENT)
    source = fetching.Source(source.url, DIGEST, limit)
    server.fault = fault
    with pytest.raises(MissingFileError, match=words):
        fetching.fetch([source], tmp_path / "file")
    assert server.sent < limit + 100 * fetching.CHUNK  # what the system holds on the way
    assert list(tmp_path.iterdir()) == []
    server.fault = ""
    assert fetching.fetch([source], tmp_path / "file").read_bytes() == CONTENT


def test_nothing_is_unpacked_on_the_way(source, server, tmp_path):
    server.fault = "packs it"
    with pytest.raises(MissingFileError, match=r"sent another file \(sha256:"):
        fetching.fetch([source], tmp_path / "file")
    packed = gzip.compress(CONTENT, mtime=0)  # as a server sends a .tar.gz that it takes for a packed .tar
    server.files["/packed"] = CONTENT
    digest = f"sha256:{hashlib.sha256(packed).hexdigest()}"
    target = fetching.fetch([fetching.Source(f"{server.url}/packed", digest)], tmp_path / "packed")
    assert target.read_bytes() == packed


def test_an_absent_file_is_named_with_its_status(server, tmp_path):
    with pytest.raises(MissingFileError, match="404"):
        fetching.fetch([fetching.Source(f"{server.url}/nothing", DIGEST)], tmp_path / "file")


def test_repeat_an_interrupted_download(source, server, tmp_path):
    server.fault = "breaks off"
    with pytest.raises(MissingFileError, match="IncompleteRead"):
        fetching.fetch([source], tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    server.fault = ""
    assert fetching.fetch([source], tmp_path / "file").read_bytes() == CONTENT


def test_try_the_second_source(source, tmp_path):
    refused = fetching.Source("http://127.0.0.1:9/file", DIGEST)
    assert fetching.fetch([refused, source], tmp_path / "file").read_bytes() == CONTENT


def test_try_an_unreachable_host_once(tmp_path, monkeypatch):
    import requests

    asked = []
    real = requests.get
    monkeypatch.setattr(requests, "get", lambda url, **options: asked.append(url) or real(url, **options))
    refused = fetching.Source("http://127.0.0.1:9/file", DIGEST)
    for _ in range(20):
        with pytest.raises(MissingFileError, match=r"127\.0\.0\.1:9: .*refused"):
            fetching.fetch([refused], tmp_path / "file")
    assert len(asked) == 1


@pytest.fixture
def environment(monkeypatch):
    """Sets variables, once none of a proxy or of certificates is there."""
    for name in list(os.environ):
        if name.lower().endswith(("_proxy", "_ca_bundle")):
            monkeypatch.delenv(name)
    return lambda variables: [monkeypatch.setenv(*each) for each in variables.items()]


@pytest.fixture
def refusing_proxy():
    """The port of a proxy that wants a password."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self):
            self.send_error(407)

        do_GET = do_CONNECT

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield httpd.server_port
        httpd.shutdown()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ALL_PROXY", "socks5h://h:9", "Missing dependencies for SOCKS support."),
        ("https_proxy", "http://127.0.0.1:9", "Connection refused"),
        ("HTTPS_PROXY", "http://no.such.invalid:80", "not known|resol|name"),
        ("HTTPS_PROXY", "http://me:secret@x:port", "Failed to parse"),
        ("HTTPS_PROXY", "foo://me:secret@x:80", "unsupported scheme foo"),
        ("HTTPS_PROXY", "http://me:secret@:80", "malformed"),
        ("https_proxy", "http://my:secret/se cret@127.0.0.1:9", ""),
        ("HTTPS_PROXY", "http://me:secret@127.0.0.1:{port}", "407 Proxy Authentication Required"),
    ],
)
def test_name_a_failing_proxy_without_its_password(variable, value, words, environment, refusing_proxy, tmp_path):
    value = value.format(port=refusing_proxy)
    environment({variable: value})
    with pytest.raises(MissingFileError, match=words) as caught:
        fetching.fetch([fetching.Source("https://x.test/f", DIGEST)], tmp_path / "file")
    assert str(caught.value).startswith(f"x.test: the proxy {re.sub('//.*@', '//', value)}: ")
    assert "secret" not in str(caught.value)


@pytest.fixture
def https_server(tmp_path):
    """The port of a server whose certificate nobody knows: ``cert.pem``, for localhost."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost"
    )
    if subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("openssl makes no certificate here")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield httpd.server_port
        httpd.shutdown()


def test_verify_certificates(environment, https_server, tmp_path):
    source = fetching.Source(f"https://localhost:{https_server}/file", DIGEST)
    (tmp_path / "empty.pem").touch()
    for variables, words in (
        ({}, r"localhost:\d+: .*certificate verify failed"),
        ({"CURL_CA_BUNDLE": "/nowhere"}, "invalid path: /nowhere"),
        ({"REQUESTS_CA_BUNDLE": str(tmp_path / "empty.pem")}, "NO_CERTIFICATE_OR_CRL_FOUND"),
    ):
        environment(variables)
        fetching._unreachable.clear()
        with pytest.raises(MissingFileError, match=words):
            fetching.fetch([source], tmp_path / "file")
    environment({"REQUESTS_CA_BUNDLE": str(tmp_path / "cert.pem")})
    fetching._unreachable.clear()
    assert fetching.fetch([source], tmp_path / "file").read_bytes() == CONTENT


def test_a_full_disk_is_named_and_not_left_full(source, tmp_path):
    resource = pytest.importorskip("resource")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # a write beyond it fails as on a full disk

    code = (
        "import sys; from pathlib import Path; from pydmobilenet import fetching\n"
        "from pydmobilenet.errors import UnusableError\n"
        "try: fetching.fetch([fetching.Source(*sys.argv[1:3])], Path(sys.argv[3]))\n"
        "except UnusableError as error: print(error)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, source.url, source.digest, tmp_path / "file"],
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert "cannot write" in answer.stdout, answer
    assert list(tmp_path.iterdir()) == []


def test_name_an_impossible_directory(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnusableError, match=f"cannot write {tmp_path}/file/models/x"):
        fetching.fetch([source], tmp_path / "file" / "models" / "x")


def test_weights_are_never_downloaded_into_the_package(server, monkeypatch, home, tmp_path):
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path)
    monkeypatch.delenv("PYDMOBILENET_HOME")
    monkeypatch.setenv("PYDMOBILENET_WEIGHTS_URL", server.url)
    checkpoint = catalog.PublishedFile("models/family/a.params", len(CONTENT), DIGEST.partition(":")[2], "")
    where = home / "mxnet" / "models"
    with pytest.raises(MissingFileError, match=f"put it into {where}$"):
        weights.obtain(checkpoint)
    server.files["/models/family/a.params"] = CONTENT
    assert weights.obtain(checkpoint) == where / "a.params"
    assert not list(tmp_path.iterdir())


def test_two_at_once_download_once(source, server, tmp_path):
    def one():
        with fetching.locked(tmp_path / "new"):
            if not (tmp_path / "new" / "file").exists():
                fetching.fetch([source], tmp_path / "new" / "file")

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert len(server.requests) == 1

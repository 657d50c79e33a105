"""A real S3 server on this machine, and a proxy before it that fails as networks and stores do."""

import contextlib
import http.client
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bigjax.paths import RemotePath, retries, stores
from tests.commands import ROOT

KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
KEYS |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}

Fault = Callable[[int, str, str], str | None]
"""Of a request, by number, method and path: `drop`, `lose`, `503`, `truncate`, `delay`, `403` or None."""


class Store:
    """A server, its address, and the requests that its proxy has seen."""

    def __init__(self, port: int):
        self.port, self.requests, self.fault = port, list[tuple[float, str, str, int]](), (lambda *_: None)

    def variables(self, port: int | None = None) -> dict[str, str]:
        """Return the environment of a process that is to use it."""
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}", "PYTHONPATH": path}

    def bucket(self) -> RemotePath:
        """Return a new, empty bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        signed = "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request"
        connection.request("PUT", f"/{name}", headers={"Authorization": signed})
        assert connection.getresponse().status == 200
        connection.close()
        return RemotePath(f"s3://{name}")


@contextlib.contextmanager
def server() -> Iterator[Store]:
    """Run a server; skip the test where there is none."""
    moto = pytest.importorskip("moto.server", reason="moto, of the extra test, is not installed")
    pytest.importorskip("s3fs", reason="s3fs, of the extra cloud, is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    try:
        yield Store(running.get_host_and_port()[1])
    finally:
        running.stop()


@contextlib.contextmanager
def used(store: Store, port: int | None = None) -> Iterator[None]:
    """Let this process use the store, at the port of a proxy if one is given."""
    variables = store.variables(port)
    variables.pop("PYTHONPATH")
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    stores.file_system.cache_clear()
    retries._answered.clear(), retries._told.clear()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        stores.file_system.cache_clear()


@contextlib.contextmanager
def proxy(store: Store) -> Iterator[int]:
    """Run a proxy that notes every request and does to it what `store.fault` says; yield its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def handle_any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            store.requests.append((time.monotonic(), self.command, self.path, len(body)))
            fault = store.fault(len(store.requests), self.command, self.path)
            if fault == "drop":
                self.close_connection = True
                self.connection.close()
                return
            if fault in ("503", "403"):
                code = {"503": "SlowDown", "403": "InvalidAccessKeyId"}[fault]
                self.answer(int(fault), {}, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())
                return
            if fault == "delay":
                time.sleep(0.3)
            onward = http.client.HTTPConnection("127.0.0.1", store.port)
            onward.request(self.command, self.path, body, dict(self.headers))
            answer = onward.getresponse()
            data = answer.read()
            if fault == "lose":  # the store has done it
                self.close_connection = True
                self.connection.close()
                return
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
            self.answer(answer.status, headers, data, cut=fault == "truncate" and len(data) > 1)
            onward.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

        def answer(self, status, headers, data, cut=False):
            self.send_response_only(status)
            for name, value in headers.items():
                if self.command == "HEAD" or name.lower() != "content-length":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.close_connection = True
                self.connection.close()

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    running.handle_error = lambda *_: None  # of connections that were dropped on purpose
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield running.server_port
    finally:
        running.shutdown()
        running.server_close()
        store.fault = lambda *_: None

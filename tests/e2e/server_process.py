"""`hadal serve` as a process that tests start, watch, stop and kill."""

import http.client
import json
import socket
import subprocess
import time
from pathlib import Path

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class ServerProcess:
    """One server, on one port, over any number of starts.

    All that it prints is kept in `log`; a test that fails shows its end.
    """

    def __init__(self, binary, directory, *options, keep=True):
        self.binary, self.directory = str(Path(binary).resolve()), Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.options = [str(o) for o in options]
        if keep:
            self.options += ["--data", str(self.directory / "data")]
        self.log = self.directory / "serve.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self, wait=True):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary, "serve", "--port", str(self.port), *self.options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self):
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"hadal serve ended with {self.process.returncode}:\n"
                                     f"{self.log_tail()}")
            try:
                if self.request("GET", "/ready", timeout=5)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError(f"hadal serve was not ready in {START_TIMEOUT_S} s:\n{self.log_tail()}")

    def request(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, body as text) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if body is not None and not isinstance(body, (str, bytes)):
                body = json.dumps(body)
            connection.request(method, path, body, {"Content-Type": "application/json",
                                                    **(headers or {})})
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()
        except http.client.HTTPException as e:
            raise OSError(f"{method} {path}: {e!r}") from e
        finally:
            connection.close()

    def json(self, method, path, body=None, headers=None):
        status, _, text = self.request(method, path, body, headers)
        assert status == 200, f"{method} {path}: {status} {text}"
        return json.loads(text)

    def status(self, headers=None):
        return self.json("GET", "/status.json", headers=headers)

    def wait_idle(self, timeout=30, headers=None):
        """Until no request is unfinished."""
        deadline = time.monotonic() + timeout
        while True:
            status = self.status(headers)
            if not status["requests"] and status["engine"]["running"] == 0:
                return status
            assert time.monotonic() < deadline, f"still busy after {timeout} s: {status}"
            time.sleep(0.02)

    def kill(self):
        """As the kernel's out-of-memory killer does it."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """As an operator does it. The server must end by itself, and well."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"SIGTERM did not end it in {STOP_TIMEOUT_S} s:\n"
                                 f"{self.log_tail()}") from None
        assert status == 0, f"hadal serve ended with {status} on SIGTERM:\n{self.log_tail()}"

    def log_tail(self, n_lines=40):
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-n_lines:])

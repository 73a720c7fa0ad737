"""A server that looks like hadal to the web page, and says and breaks what a test scripts."""

import json
import socket
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WEB = Path(__file__).resolve().parents[2] / "src" / "server" / "web"
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
# No inline script or style, nothing from elsewhere: what the server sends too.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


# Steps of a script. An answer is a list of them.
def reasoning(text):
    return ("delta", {"reasoning_content": text})


def content(text):
    return ("delta", {"content": text})


def call(index, call_id, name):
    return (
        "delta",
        {
            "tool_calls": [
                {
                    "index": index,
                    "id": call_id,
                    "type": "function",
                    "function": {"name": name, "arguments": ""},
                }
            ]
        },
    )


def arguments(index, text):
    return ("delta", {"tool_calls": [{"index": index, "function": {"arguments": text}}]})


def finish(reason="stop"):
    return ("finish", reason)


def usage(prompt, completion, cached=0, thought=0):
    return (
        "usage",
        {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": thought},
        },
    )


def wait(event):
    return ("wait", event)  # goes on when the test sets the event


def pause(seconds):
    return ("pause", seconds)


DROP = ("drop", None)  # the connection that gets here is cut; the generation goes on
DONE = ("done", None)
KEEP_ALIVE = ("keep-alive", None)


def error(message, code=None):
    return ("error", {"message": message, "type": "server_error", "param": None, "code": code})


def words(text):
    """One content step a word, blanks kept."""
    parts = text.split(" ")
    return [content(p + (" " if i + 1 < len(parts) else "")) for i, p in enumerate(parts)]


def answer(text, **counts):
    return [
        *words(text),
        finish(),
        usage(counts.get("prompt", 10), counts.get("completion", 5)),
        DONE,
    ]


class Stream:
    """One generation: it runs whether or not anybody reads."""

    def __init__(self, name, script):
        self.name, self.items, self.closed, self.cancelled = name, [], False, False
        self.changed = threading.Condition()
        threading.Thread(target=self.run, args=(script,), daemon=True).start()

    def add(self, kind, data, tokens):
        with self.changed:
            # As the server counts: "12", then "12.1" for what comes behind it without a new token.
            last = self.items[-1]["position"] if self.items else (-1, 0)
            position = (tokens, last[1] + 1 if last[0] == tokens else 0)
            self.items.append({"kind": kind, "data": data, "position": position, "spent": False})
            self.changed.notify_all()

    def chunk(self, **members):
        return json.dumps(
            {
                "id": f"chatcmpl-{self.name}",
                "object": "chat.completion.chunk",
                "created": 1790000000,
                "model": "mock",
                **members,
            },
            ensure_ascii=False,
        )

    def choice(self, delta, reason=None):
        return self.chunk(
            choices=[{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
        )

    def run(self, script):
        tokens = 0
        self.add("data", self.choice({"role": "assistant", "content": ""}), 0)
        for kind, value in script:
            if self.cancelled:
                break
            if kind == "wait":
                value.wait(60)
            elif kind == "pause":
                time.sleep(value)
            elif kind == "delta":
                tokens += 1
                self.add("data", self.choice(value), tokens)
            elif kind == "finish":
                tokens += 1
                self.add("data", self.choice({}, value), tokens)
            elif kind == "usage":
                self.add("data", self.chunk(choices=[], usage=value), tokens)
            elif kind == "error":
                self.add("data", json.dumps({"error": value}), tokens)
            elif kind == "done":
                self.add("data", "[DONE]", tokens)
            else:
                self.add(kind, None, tokens)
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def next(self, at):
        """The item at `at`, or None when there will be none."""
        with self.changed:
            self.changed.wait_for(lambda: at < len(self.items) or self.closed, timeout=60)
            return self.items[at] if at < len(self.items) else None


class MockServer:
    def __init__(self):
        self.answers = deque()  # scripts, one a request; an echo when there is none
        self.requests = []  # {method, path, headers, body, text}
        self.streams = {}
        self.failures = deque()  # (status, JSON, headers) for the next API requests
        self.key = None
        self.resumable = True
        self.split = 0  # bytes a piece; 0: an event a piece
        self.models = [
            {"id": "mock", "object": "model", "context_length": 65536},
            {"id": "mock-large", "object": "model", "context_length": 1048576},
        ]
        self.status = lambda: (503, {"state": "loading"})
        self.port = 0
        self.httpd = None
        self.start()

    def start(self):
        self.httpd = ThreadingHTTPServer(("127.0.0.1", self.port), handler(self))
        self.httpd.daemon_threads = True
        self.port = self.httpd.server_address[1]
        threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.httpd.shutdown()
        self.httpd.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    def posts(self):
        return [r for r in self.requests if r["method"] == "POST"]


def handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_):
            pass

        def reply(self, status, body, kind="application/json", headers=()):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Connection", "close")  # a stopped server must look stopped
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = True

        def api_error(self, status, message, headers=(), **extra):
            self.reply(
                status,
                {
                    "error": {
                        "message": message,
                        "type": "invalid_request_error",
                        "param": None,
                        "code": None,
                        **extra,
                    }
                },
                headers=headers,
            )

        def handle_one_request(self):
            try:
                super().handle_one_request()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def do_GET(self):
            self.route("GET")

        def do_POST(self):
            self.route("POST")

        def do_DELETE(self):
            self.route("DELETE")

        def route(self, method):
            path = self.path.split("?")[0]
            if method == "GET" and not path.startswith("/v1/") and path != "/status.json":
                self.page(path)
                return
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            if path != "/status.json":
                server.requests.append(
                    {
                        "method": method,
                        "path": path,
                        "text": text,
                        "headers": dict(self.headers),
                        "body": json.loads(text) if text else None,
                    }
                )
            if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                self.api_error(401, "wrong key", code="invalid_api_key")
            elif path == "/status.json":
                self.reply(*server.status())
            elif path == "/v1/models":
                self.reply(200, {"object": "list", "data": server.models})
            elif server.failures:
                status, error, headers = server.failures.popleft()
                self.api_error(status, headers=headers, **error)
            elif method == "POST" and path == "/v1/chat/completions":
                self.complete(server.requests[-1]["body"])
            elif path.startswith("/v1/streams/"):
                self.stream(method, path.rsplit("/", 1)[1])
            else:
                self.api_error(404, f"no such path: {path}")

        def page(self, path):
            name = {"/": "index.html", "/status": "status.html"}.get(path, path[1:])
            file = WEB / name
            if "/" in name or not file.is_file():
                self.reply(404, b"not found", "text/plain")
                return
            self.reply(200, file.read_bytes(), TYPES[file.suffix])

        def complete(self, body):
            name = body.get("stream_id") if server.resumable else None
            name = name or f"s{len(server.streams)}"
            if name not in server.streams:
                script = (
                    server.answers.popleft()
                    if server.answers
                    else answer("You said: " + str(body["messages"][-1]["content"]))
                )
                server.streams[name] = Stream(name, script)
            self.follow(server.streams[name], (-1, 0), body.get("seed", 18446744073709551557))

        def stream(self, method, name):
            stream = server.streams.get(name)
            if stream is None or not server.resumable:
                self.api_error(404, f"no stream {name}", type="not_found_error")
            elif method == "DELETE":
                stream.cancelled = True
                self.reply(200, {"id": name, "deleted": True})
            else:
                last = self.headers.get("Last-Event-ID", "")
                self.follow(
                    stream,
                    (
                        tuple(int(n) for n in (last.rsplit(":", 1)[1] + ".0").split(".")[:2])
                        if last
                        else (-1, 0)
                    ),
                )

        def follow(self, stream, after, seed=None):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Cache-Control", "no-cache")
            self.send_header("Connection", "close")
            self.send_header("x-stream-id", stream.name)
            if seed is not None:
                self.send_header("x-seed", str(seed))
            self.end_headers()
            first = seed is not None
            at = 0
            while (item := stream.next(at)) is not None:
                at += 1
                if item["kind"] == "drop":
                    if item["spent"]:
                        continue
                    item["spent"] = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    break
                if item["kind"] == "keep-alive":
                    self.piece(b": keep-alive\n\n")
                elif first or item["position"] > after:
                    position = "{}.{}".format(*item["position"]).removesuffix(".0")
                    event = f"id: {stream.name}:{position}\ndata: {item['data']}\n\n"
                    data = (event if server.resumable else event.split("\n", 1)[1]).encode()
                    size = server.split or len(data)
                    for i in range(0, len(data), size):
                        self.piece(data[i : i + size])
            else:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

        def piece(self, data):
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

    return Handler

"""A real server on loopback that answers chat completions as a test tells it to."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def said(text):
    return 200, json.dumps({"choices": [{"message": {"content": text}}]})


@contextmanager
def chat_server(answer):
    """``answer(body)`` gives a status and a text (or its parts), or seconds of silence. Yields the address and what was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            found = answer(body)
            if isinstance(found, float):
                time.sleep(found)
                self.close_connection = True
                return
            status, text = found
            self.send_response(status)
            if status == 307:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            with suppress(OSError):  # whoever asked may have had enough
                for part in [text] if isinstance(text, str) else text:
                    self.wfile.write(part.encode())
                    self.wfile.flush()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()

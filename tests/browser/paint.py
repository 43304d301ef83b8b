"""How long the pages of a running system take to their first contentful paint, by turns with a page of
one line, which no page can be faster than on that machine.

Called as `SCRIPT ADDRESS [ROUNDS]`, with Playwright in PYTHONPATH (the tests of the pages put it into
target/tmp/clients/browser)."""

import http.server
import shutil
import statistics
import sys
import threading

from playwright.sync_api import sync_playwright

BASE, ROUNDS = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 21
NAMES = ["chromium", "chromium-browser", "google-chrome"]
LINE = b"<!doctype html><title>A line</title><p>One line of text"
PAINT = """() => new Promise((done) => new PerformanceObserver((list) => {
  const paint = list.getEntriesByName("first-contentful-paint")[0];
  if (paint) done(paint.startTime);
}).observe({ type: "paint", buffered: true }))"""


class Line(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(LINE)))
        self.end_headers()
        self.wfile.write(LINE)

    def log_message(self, *_):
        pass


line = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Line)
threading.Thread(target=line.serve_forever, daemon=True).start()
pages = {"shop": f"{BASE}/", "console": f"{BASE}/ops", "a line": f"http://127.0.0.1:{line.server_port}/"}
paints = {name: [] for name in pages}
with sync_playwright() as playwright:
    program = next(filter(None, map(shutil.which, NAMES)))
    chromium = playwright.chromium.launch(
        executable_path=program, args=["--no-sandbox", "--disable-gpu"]
    )
    for _ in range(ROUNDS):
        for name, address in pages.items():
            context = chromium.new_context()
            page = context.new_page()
            page.goto(address)
            paints[name].append(page.evaluate(PAINT))
            context.close()
    chromium.close()
for name, times in paints.items():
    median = statistics.median(times)
    print(f"{name:8} least {min(times):4.0f} ms, median {median:4.0f} ms, most {max(times):4.0f} ms")

"""What the tests of the pages stand on: a Chromium whose every complaint is a failure, and the api.

Called as `SCRIPT ADDRESS FOLDER`: the api's address, and where pictures of the pages go. The test
that has started the script does for it what a page cannot: `ask("restart")` prints the word, and
waits for a line that says that it is done."""

import json
import pathlib
import re
import shutil
import sys
import time
import traceback
import urllib.request

import axe_playwright_python
from playwright.sync_api import expect, sync_playwright

BASE, SHOTS = sys.argv[1], pathlib.Path(sys.argv[2])
NAMES = ["chromium", "chromium-browser", "google-chrome"]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 860}
AXE = (pathlib.Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
# Told by the browser itself: what the page's policy has blocked, and what has moved.
WATCH = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`blocked by the policy: ${event.violatedDirective} ${event.blockedURI}`));
window.moved = [];
new PerformanceObserver((list) => list.getEntries().forEach((entry) => {
  const name = (it) => it.node && `${it.node.nodeName} ${it.node.className ?? ""} by ${it.currentRect.y - it.previousRect.y}`;
  if (!entry.hadRecentInput) window.moved.push([entry.value, ...entry.sources.map(name)]);
})).observe({ type: "layout-shift", buffered: true });
"""
expect.set_options(timeout=20_000)
scenarios = []


def scenario(test):
    scenarios.append(test)
    return test


def ask(word):
    print(f"ask {word}", flush=True)
    answer = sys.stdin.readline()
    assert answer.strip() == "done", answer


def api(method, path, body=None, **headers):
    """A request to the api, past the pages; its JSON."""
    data = None if body is None else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers |= {"Content-Type": "application/json"} if data else {}
    request = urllib.request.Request(BASE + path, data, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        return json.load(answer)


def eventually(what, condition):
    end = time.monotonic() + 20
    while not (value := condition()):
        assert time.monotonic() < end, f"not in time: {what}"
        time.sleep(0.05)
    return value


def usd(amount):
    return {"amount": amount, "currency": "USD"}


def register(name, limit=None):
    body = {"customerId": name.lower(), "name": name} | ({"creditLimit": usd(limit)} if limit else {})
    api("POST", "/v1/customers", body, Prefer="wait=20")


def define(product, name, price, category, brand, stock=1000):
    body = {"name": name, "brand": brand, "category": category, "price": usd(price), "initialStock": stock}
    api("PUT", f"/v1/products/{product}", body, Prefer="wait=20")


def place(customer, product, order=None):
    """An order of one piece, by card; its id."""
    body = {
        "customerId": customer.lower(),
        "lines": [{"productId": product, "quantity": 1}],
        "payment": {"method": "card", "token": "tok_ok"},
    }
    return api("POST", "/v1/orders", body | ({"orderId": order} if order else {}), Prefer="wait=20")["orderId"]


def orders(customer):
    return api("GET", f"/v1/customers/{customer.lower()}/orders")["items"]


class Shop:
    """A browser of its own, that looks at the pages as one customer does."""

    def __init__(self, chromium, viewport=DESKTOP, scheme="light"):
        self.context = chromium.new_context(viewport=viewport, color_scheme=scheme)
        self.context.add_init_script(WATCH)
        self.wrong, self.offline = [], False
        self.page = self.tab()

    def tab(self):
        page = self.context.new_page()
        page.on("console", lambda it: it.type in ("error", "warning") and self.complain(it.text))
        page.on("pageerror", lambda error: self.complain(f"{error}"))
        page.on("requestfailed", self.failed)
        page.on("response", lambda it: it.status >= 400 and self.complain(f"{it.status} {it.url}"))
        return page

    def failed(self, request):
        # A page that is left, or a search that is overtaken, ends its own requests.
        if request.failure != "net::ERR_ABORTED":
            self.complain(f"{request.failure} {request.url}")

    def complain(self, text):
        if not self.offline:
            self.wrong.append(text)

    def open(self, path="/"):
        self.page.goto(BASE + path)
        return self.page

    def be(self, name):
        """Becomes a customer by clicking its name."""
        page = self.open("/#/account")
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        return page

    def fill_cart(self, product):
        page = self.open(f"/#/product/{product}")
        page.get_by_role("button", name="Put into the cart").click()
        return page

    def buy(self, product, card="Card that works"):
        """Buys one piece; ends on the order's page."""
        page = self.fill_cart(product)
        self.open("/#/checkout")
        page.get_by_role("radio", name=card).check()
        page.get_by_role("button", name="Buy").click()
        expect(page.locator("#status")).to_be_visible()
        return page

    def accessible(self, name):
        """Whether axe finds nothing to complain about; and a picture of the page."""
        page = self.page
        page.wait_for_timeout(150)
        page.screenshot(path=SHOTS / f"{name}.png")
        page.evaluate(AXE)
        rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        found = page.evaluate("(tags) => axe.run(document, { runOnly: tags })", rules)
        told = [f"{name}: {it['id']}: {it['help']}: {[node['html'] for node in it['nodes']][:3]}"
                for it in found["violations"]]
        assert not told, "\n".join(told)
        wide = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{name} is {wide} pixels wider than the window"

    def close(self):
        self.context.close()
        assert not self.wrong, "the browser complains: " + "\n".join(self.wrong)


def run():
    SHOTS.mkdir(parents=True, exist_ok=True)
    failed = []
    only = sys.argv[3:]
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, NAMES)))
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        for test in scenarios:
            if only and test.__name__ not in only:
                continue
            start = time.monotonic()
            try:
                test(chromium)
                print(f"good  {test.__name__} ({time.monotonic() - start:.1f} s)", flush=True)
            except Exception:
                failed.append(test.__name__)
                print(f"WRONG {test.__name__}\n{traceback.format_exc()}", flush=True)
        chromium.close()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)

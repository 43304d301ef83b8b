"""What an OpenAPI document cannot say, said to schemathesis.

Values are changed right before the call; schemathesis judges by what was sent. Only what is valid by
itself is changed, so that malformed values reach the edge as they were made up.
"""

import json
import os
import re
import zlib
from datetime import datetime

import schemathesis

# What there is to be read: lists of ids by the first part of the path.
KNOWN = json.loads(os.environ["MILLRACE_KNOWN"])
NAME = "[A-Za-z0-9_-]{1,64}"
UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
SHAPES = {
    "orders": re.compile(UUID),
    "customers": re.compile(NAME),
    "products": re.compile(NAME),
    "commands": re.compile(f"{UUID}|[0-9]{{1,19}}"),
}
CURSOR = re.compile(rf"([rpdn]\.[0-9]{{1,9}}\.-?[0-9]{{1,18}}\.)?{NAME}")
# Milliseconds that a request waits for what may never come.
SHORT = 20
CSV_HEADER = "productId,name,brand,category,price,currency,stock\n"


def whole(value):
    """JSON Schema takes 1.0 for an integer. Millrace does not: whoever computes with fractions of a
    cent is to be told so on the first request, not on the first one that does not come out even."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value


@schemathesis.hook
def map_body(context, body):
    return whole(body)


@schemathesis.serializer("text/csv", "application/x-ndjson")
def text(context, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


def digest(value):
    return zlib.crc32(str(value).encode("utf-8", "surrogatepass"))


def number(value):
    """A whole number, also one that coverage has written as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,20}", value) else None


def time(value):
    try:
        parsed = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return parsed if parsed.tzinfo else None


def read_what_is_there(path, case):
    """Half of the well-formed ids become ids of something that is there. A stream waits for what
    is not, so all of its ids do."""
    given = (case.path_parameters or {}).get("id")
    kind = path.split("/")[2] if path.startswith("/v1/") else ""
    if kind in KNOWN and isinstance(given, str) and SHAPES[kind].fullmatch(given):
        choice = digest(given)
        if path.endswith("/stream") or choice % 2 == 0:
            case.path_parameters["id"] = KNOWN[kind][choice // 2 % len(KNOWN[kind])]


def wait_shortly(path, case):
    """Nobody changes what these requests wait for."""
    query = case.query
    if number(query.get("waitMs")) is not None:
        query["waitMs"] = min(number(query["waitMs"]), SHORT)
    elif "waitMs" not in query and ("minVersion" in query or path == "/v1/commands/{id}"):
        query["waitMs"] = SHORT


def order_times(path, case):
    """`from` is before `to`, and a report is about the years that it can be about."""
    query = case.query
    times = {name: time(query.get(name)) for name in ("from", "to")}
    if path.startswith("/v1/reports"):
        for name, at in times.items():
            # A beginning alone must be in the past.
            years = range(1971, 2026 if name == "from" else 9998)
            if at and at.year not in years:
                del query[name]
                times[name] = None
    if times["from"] and times["to"] and times["from"] >= times["to"]:
        del query["to"]


def search_consistently(case):
    """Prices are of a currency, the least is not above the most, and a place is one of its list."""
    query = case.query
    if "currency" not in query and ("minPrice" in query or "maxPrice" in query):
        query["currency"] = "USD"
    least, most = number(query.get("minPrice")), number(query.get("maxPrice"))
    if least is not None and most is not None and least > most:
        del query["maxPrice"]
    cursor = query.get("cursor")
    sort = query.get("sort", "relevance")
    if isinstance(cursor, str) and CURSOR.fullmatch(cursor) and isinstance(sort, str):
        letter = {"price": "p", "-price": "d", "newest": "n"}.get(sort, "r")
        plain = not set(query) - {"cursor", "limit"}
        last = cursor.rsplit(".", 1)[-1]
        query["cursor"] = last if plain else f"{letter}.0.0.{last}"


def place_consistently(case):
    """An idempotency key names the order, and a product stands in one line only."""
    body = case.body
    if not isinstance(body, dict):
        return
    if "Idempotency-Key" in (case.headers or {}):
        body.pop("orderId", None)
    lines = body.get("lines")
    if isinstance(lines, list) and all(isinstance(line, dict) for line in lines):
        seen = {}
        for line in lines:
            seen.setdefault(json.dumps(line.get("productId")), line)
        body["lines"] = list(seen.values())


@schemathesis.hook
def before_call(context, case, kwargs):
    path = case.operation.path
    read_what_is_there(path, case)
    if isinstance(case.query, dict) and case.query:
        if path == "/v1/orders/{id}" and {"asOf", "version"} & set(case.query):
            # The past does not change: it is not waited for.
            case.query.pop("minVersion", None)
            case.query.pop("waitMs", None)
        order_times(path, case)
        if path == "/v1/products":
            search_consistently(case)
    if case.method == "GET" and isinstance(case.query, dict):
        wait_shortly(path, case)
    if path == "/v1/orders":
        place_consistently(case)
    if path == "/v1/products:import" and case.media_type == "text/csv" and isinstance(case.body, str):
        # Whatever the rows are, the header must be one.
        case.body = CSV_HEADER + case.body

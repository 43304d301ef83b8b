"""JSON Schema takes 1.0 for an integer. Millrace does not: whoever computes with fractions of a cent
is to be told so on the first request, not on the first one that does not come out even."""

import schemathesis


def whole(value):
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

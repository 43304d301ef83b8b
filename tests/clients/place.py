"""Publishes a command with nats-py, as any NATS client may.

Arguments: the subject, the payload, and headers as NAME=VALUE. Address, user and password come
from the environment. Prints the stream sequence of the publish ack.
"""

import asyncio
import os
import sys

import nats


async def main(subject, payload, *headers):
    connection = await nats.connect(
        os.environ["NATS_URL"],
        user=os.environ["NATS_USER"],
        password=os.environ["NATS_PASSWORD"],
        allow_reconnect=False,
    )
    try:
        given = dict(header.split("=", 1) for header in headers)
        ack = await connection.jetstream().publish(
            subject, payload.encode(), timeout=10, headers=given or None
        )
        print(ack.seq)
    finally:
        await connection.close()


asyncio.run(main(*sys.argv[1:]))

"""Asks over NATS with nats-py, and discovers micro services as `nats micro ls` does.

Arguments: subjects that are asked. Address, user and password come from the environment. Prints one
JSON object: `answers` by subject with `headers` and `body`, and what all services say to `$SRV.INFO`
and `$SRV.STATS` as `INFO` and `STATS`.
"""

import asyncio
import json
import os
import sys

import nats

# Seconds without another answer, after which all services have answered.
QUIET = 1.0


async def services(connection, verb):
    inbox = connection.new_inbox()
    answers = await connection.subscribe(inbox)
    await connection.publish(f"$SRV.{verb}", reply=inbox)
    found = []
    try:
        while True:
            found.append(json.loads((await answers.next_msg(timeout=QUIET)).data))
    except nats.errors.TimeoutError:
        return found


async def main(*subjects):
    connection = await nats.connect(
        os.environ["NATS_URL"],
        user=os.environ["NATS_USER"],
        password=os.environ["NATS_PASSWORD"],
        allow_reconnect=False,
    )
    try:
        answers = {}
        for subject in subjects:
            answer = await connection.request(subject, b"", timeout=10)
            answers[subject] = {"headers": answer.headers, "body": json.loads(answer.data)}
        found = {verb: await services(connection, verb) for verb in ("INFO", "STATS")}
        print(json.dumps({"answers": answers, **found}))
    finally:
        await connection.close()


asyncio.run(main(*sys.argv[1:]))

"""Runs localstripe on a free port of this machine alone, and prints the port.

The program of its own listens to everybody, and keeps its data in one file for all.
"""

import socket

from aiohttp import web
from localstripe import resources, server

resources.Store.dump_to_disk = lambda _: None
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
web.run_app(server.app, sock=listening, print=None)

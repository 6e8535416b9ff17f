"""
A TCP proxy that adds network latency to the stand-in for Zendesk.

    python distant_zendesk.py PORT STAND_IN_PORT SECONDS

SECONDS is the duration of a round trip. Data arrives half a round trip after it was sent. On a new connection, the
first data arrives one round trip later, as it would after a TCP handshake. SIGUSR1 closes all connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys


async def serve(port: int, stand_in_port: int, round_trip: float) -> None:
    loop = asyncio.get_running_loop()
    open_writers: set[asyncio.StreamWriter] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, not_before: float) -> None:
        open_writers.add(writer)
        with contextlib.suppress(OSError):  # either side may close its connection
            while data := await reader.read(65536):
                loop.call_at(max(loop.time(), not_before) + round_trip / 2, writer.write, data)
        loop.call_at(loop.time() + round_trip / 2, writer.close)
        open_writers.discard(writer)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected = loop.time() + round_trip
        far_reader, far_writer = await asyncio.open_connection('127.0.0.1', stand_in_port)
        await asyncio.gather(forward(reader, far_writer, connected), forward(far_reader, writer, connected))

    def close_all() -> None:
        for writer in open_writers:
            writer.close()

    loop.add_signal_handler(signal.SIGUSR1, close_all)
    async with await asyncio.start_server(connect, '127.0.0.1', port) as server:
        await server.serve_forever()


if __name__ == '__main__':
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))

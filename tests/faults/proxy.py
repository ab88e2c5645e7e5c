"""A TCP proxy between clients and brokers that delays, goes silent, resets connections, or swallows fetches or answers.

It runs in a thread with an event loop of its own; the attributes may be set from any thread at any time.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65536
# SO_LINGER on with 0 s: closing sends RST, as a peer that lost its state does.
RESET = struct.pack("ii", 1, 0)
# How a request begins: its size without this number, and the API key.
REQUEST_HEAD = struct.Struct(">ih")
FETCH_KEY = 1


class Requests:
    """Cuts what one client sends into requests. Once it `hangs`, its fetches are swallowed and the rest goes through.

    librdkafka has one fetch under way on a connection and makes the next when it is answered: one that is swallowed
    stops the partitions that the broker leads, while heartbeats, commits and metadata go on.
    """

    def __init__(self) -> None:
        self.hangs = False
        self.swallowed = 0
        self._held = bytearray()

    def passed(self, data: bytes) -> bytes:
        """Return the bytes to pass on, of the requests that are complete by now."""
        self._held += data
        passed = bytearray()
        begin = 0
        while len(self._held) - begin >= REQUEST_HEAD.size:
            size, key = REQUEST_HEAD.unpack_from(self._held, begin)
            end = begin + 4 + size
            if end > len(self._held):
                break
            if self.hangs and key == FETCH_KEY:
                self.swallowed += 1
            else:
                passed += self._held[begin:end]
            begin = end
        del self._held[:begin]
        return bytes(passed)


class Proxy:
    """Listens on the first port of each route and passes on to the second.

    `delay_s` is waited before each chunk is passed on, in both directions. While `silent`, nothing is passed on and
    connections stay open, as with a network that drops packets; what was held is passed on afterwards, as TCP would.
    While `unanswered`, the brokers get what clients send, and what they answer is dropped.
    """

    def __init__(self, routes: Sequence[tuple[int, int]]) -> None:
        self.delay_s = 0.0
        self.silent = False
        self.unanswered = False
        self._routes = routes
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._requests: set[Requests] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        for port, target in self._routes:
            asyncio.run_coroutine_threadsafe(self._listen(port, target), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self) -> int:
        """Resets every connection and returns how many there were."""
        return asyncio.run_coroutine_threadsafe(self._reset(), self._loop).result()

    def hang_fetches(self) -> None:
        """From now on swallows the fetches of the connections that there are now; new ones are not touched."""
        for each in self._requests.copy():
            each.hangs = True

    def hung(self) -> int:
        """How many connections have had a fetch swallowed and are still open."""
        return sum(each.swallowed > 0 for each in self._requests.copy())

    async def _listen(self, port: int, target: int) -> None:
        server = await asyncio.start_server(
            lambda reader, writer: self._serve(reader, writer, target), "127.0.0.1", port
        )
        self._servers.append(server)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            # The broker is down: its client must see the same as without a proxy.
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        requests = Requests()
        self._requests.add(requests)
        # Cancelled at the end, which is no error.
        with suppress(asyncio.CancelledError):
            await asyncio.gather(
                self._pump(reader, up_writer, requests.passed), self._pump(up_reader, writer, self._answered)
            )
        self._writers -= {writer, up_writer}
        self._requests.remove(requests)

    def _answered(self, data: bytes) -> bytes:
        return b"" if self.unanswered else data

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: Callable[[bytes], bytes]
    ) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                await asyncio.sleep(self.delay_s)
                while self.silent:
                    await asyncio.sleep(0.02)
                writer.write(passed(data))
                await writer.drain()
        except OSError:
            pass  # one of the peers has gone; the other learns it below
        writer.close()

    async def _reset(self) -> int:
        writers = list(self._writers)
        for writer in writers:
            connection = writer.get_extra_info("socket")
            if not writer.is_closing():
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        return len(writers) // 2

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        await self._reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""Just enough of an NBD client to write and trim, and to notice when it stalls."""

import socket
import struct
import time

OPTION_GO = 7
REPLY_ACK, REPLY_INFO = 1, 3
WRITE, TRIM = 1, 4


class Connection:
    """One connection to an export; anything that goes wrong is an OSError."""

    def __init__(self, port, export):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting = self.receive(18)
        if greeting[:16] != b"NBDMAGICIHAVEOPT":
            raise OSError("not an NBD server")
        name = export.encode()
        option = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.socket.sendall(struct.pack(">I", 3) + b"IHAVEOPT"
                            + struct.pack(">II", OPTION_GO, len(option)) + option)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.receive(20))
            self.receive(length)
            if kind == REPLY_ACK:
                return
            if kind != REPLY_INFO:
                raise OSError(f"the export was refused: {kind:#x}")

    def receive(self, length):
        data = b""
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            if not piece:
                raise OSError("the server closed the connection")
            data += piece
        return data

    def write(self, offset, data):
        """Returns when the write is acknowledged."""
        self.send(WRITE, offset, len(data), data)
        self.answered()

    def send(self, kind, offset, length, data=b""):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 0, offset, length) + data)

    def answered(self):
        """Takes the answer of some request without data."""
        _, error, _ = struct.unpack(">IIQ", self.receive(16))
        if error:
            raise OSError(f"a request failed: {error}")

    def close(self):
        self.socket.close()


def pipeline(connection, requests, depth):
    """Sends requests (kind, offset, length, data), at most so many at a time; returns at the last
    answer."""
    in_flight = 0
    for request in requests:
        connection.send(*request)
        in_flight += 1
        if in_flight == depth:
            connection.answered()
            in_flight -= 1
    for _ in range(in_flight):
        connection.answered()


def write_steadily(ports, export, stop, acknowledged):
    """Writes blocks, one at a time, until `stop` is set, and notes when each was acknowledged.
    When a connection breaks, the next port is tried at once."""
    data, number, at = b"\xa5" * 4096, 0, 0
    connection = None
    while not stop.is_set():
        try:
            if connection is None:
                connection = Connection(ports[at % len(ports)], export)
            connection.write(number % 4096 * 4096, data)
            acknowledged.append(time.monotonic())
            number += 1
        except OSError:
            if connection is not None:
                connection.close()
            connection, at = None, at + 1
            time.sleep(0.01)
    if connection is not None:
        connection.close()

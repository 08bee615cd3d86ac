"""What libnbd can do that the other clients do not: structured replies with DF, several
connections of one client that see each other's writes, many requests in flight, block status, and
requests that a polite client would not send. Arguments: the same volume through several pods."""

import errno
import sys

import nbd

MIB = 1 << 20


def connect(uri, polite=True):
    handle = nbd.NBD()
    handle.add_meta_context("base:allocation")
    if not polite:
        handle.set_strict_mode(0)
    handle.connect_uri(uri)
    return handle


def refused(call, *numbers):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum in numbers, (error, numbers)
        return
    raise AssertionError("was not refused")


def structured(uri):
    handle = connect(uri)
    assert handle.get_structured_replies_negotiated()
    assert handle.can_df() and handle.can_multi_conn() and handle.can_fua()
    assert handle.can_meta_context("base:allocation")
    handle.pwrite(b"\xa5" * 10000, 5000, nbd.CMD_FLAG_FUA)
    handle.zero(4096, 8192)
    expected = bytearray(32768)
    expected[5000:15000] = b"\xa5" * 10000
    expected[8192:12288] = bytes(4096)
    pieces = []

    def chunk(data, offset, status, error):
        pieces.append((offset, len(data), status))
        assert bytes(data) == bytes(expected[offset : offset + len(data)])

    assert handle.pread_structured(32768, 0, chunk) == expected
    assert sum(length for _, length, _ in pieces) == 32768
    pieces.clear()
    # With DF all of it comes in one piece.
    handle.pread_structured(32768, 0, chunk, nbd.CMD_FLAG_DF)
    assert len(pieces) == 1
    handle.shutdown()


def several_connections(uris):
    handles = [connect(uri) for uri in uris for _ in range(2)]
    for number, writer in enumerate(handles):
        fill = bytes([number + 1]) * 8192
        writer.pwrite(fill, MIB + 4096 * number)
        # No flush: what was acknowledged is seen by everybody.
        for reader in handles:
            assert reader.pread(8192, MIB + 4096 * number) == fill
    for handle in handles:
        handle.shutdown()


def many_in_flight(uri):
    handle = connect(uri)
    base, count, size = 2 * MIB, 256, 12288
    buffers = [nbd.Buffer.from_bytearray(bytearray([n % 251 + 1]) * size) for n in range(count)]
    cookies = [handle.aio_pwrite(b, base + n * size) for n, b in enumerate(buffers)]
    while handle.aio_in_flight() > 0:
        handle.poll(-1)
    assert all(handle.aio_command_completed(cookie) for cookie in cookies)
    results = [nbd.Buffer(size) for _ in range(count)]
    cookies = [handle.aio_pread(b, base + n * size) for n, b in enumerate(results)]
    while handle.aio_in_flight() > 0:
        handle.poll(-1)
    assert all(handle.aio_command_completed(cookie) for cookie in cookies)
    for number, buffer in enumerate(results):
        assert buffer.to_bytearray() == bytearray([number % 251 + 1]) * size, number
    handle.shutdown()


def block_status(uri):
    handle = connect(uri)
    base = 16 * MIB
    handle.trim(MIB, base)
    handle.pwrite(b"x" * 65536, base + 131072)
    extents = []

    def extent(context, offset, entries, error):
        assert context == "base:allocation"
        extents.extend(zip(entries[::2], entries[1::2]))

    handle.block_status(MIB, base, extent)
    # Several runs of the same kind may follow each other, and the last may reach further.
    position, data = 0, set()
    for length, flags in extents:
        if flags & nbd.STATE_HOLE == 0:
            data.update(range(position, min(position + length, MIB), 4096))
        position += length
    assert position >= MIB
    assert data == set(range(131072, 131072 + 65536, 4096)), sorted(data)[:3]
    extents.clear()
    handle.block_status(MIB, base, extent, nbd.CMD_FLAG_REQ_ONE)
    assert len(extents) == 1
    handle.shutdown()


def impolite(uri):
    handle = connect(uri, polite=False)
    size = handle.get_size()
    buffer = b"y" * 4096
    refused(lambda: handle.pread(4096, size), errno.EINVAL)
    refused(lambda: handle.pread(8192, size - 4096), errno.EINVAL)
    refused(lambda: handle.pwrite(buffer, size), errno.ENOSPC, errno.EINVAL)
    refused(lambda: handle.pwrite(buffer * 2, size - 4096), errno.ENOSPC, errno.EINVAL)
    refused(lambda: handle.zero(8192, size - 4096), errno.ENOSPC, errno.EINVAL)
    refused(lambda: handle.trim(8192, size - 4096), errno.EINVAL)
    refused(lambda: handle.pread(4096, 2**63 - 4096), errno.EINVAL)
    refused(lambda: handle.pread(4096, 0, 1 << 14), errno.EINVAL)
    # Nothing of the refused writes is there, and the connection goes on.
    assert handle.pread(4096, size - 4096) == bytes(4096)
    handle.pwrite(buffer, size - 4096)
    assert handle.pread(4096, size - 4096) == buffer
    handle.shutdown()


def main():
    uris = sys.argv[1:]
    structured(uris[0])
    several_connections(uris)
    many_in_flight(uris[1])
    block_status(uris[2])
    impolite(uris[0])
    print("all checks passed")


main()

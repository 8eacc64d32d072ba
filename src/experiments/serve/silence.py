"""How late `/health` is while thousands of sockets say nothing and hundreds drip.

    ramp serve RUN --port 8000 &
    python -m experiments.serve.silence 8000 600

5,000 connections send nothing and 200 send a byte a second of a header; what the server cuts off
comes back at once. Another process asks for `/health` fifty times a second.
"""

import multiprocessing
import socket
import sys
import threading
import time

import httpx

NUM_SILENT, NUM_DRIPPING = 5_000, 200
PER_SECOND = 500  # that come back: more would measure this script
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


def connect(port: int, head: bytes) -> socket.socket:
    """A connection on which `head` was said."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    sock.sendall(head)
    sock.setblocking(False)
    return sock


def is_open(sock: socket.socket, say: bytes) -> bool:
    """Whether the server still holds a connection, on which `say` is said."""
    try:
        if say:
            sock.send(say)
        return bool(sock.recv(1024))
    except BlockingIOError:
        return True
    except OSError:
        return False


def hold(port: int, count: int, head: bytes, say: bytes, stop: threading.Event) -> int:
    """Hold `count` connections until told to stop, and return how many the server has cut off."""
    held: list[socket.socket] = []
    num_cut = 0
    while not stop.is_set():
        begun = time.perf_counter()
        still_open = []
        for sock in held:
            if is_open(sock, say):
                still_open.append(sock)
            else:
                sock.close()
                num_cut += 1
        held = still_open
        for _ in range(min(PER_SECOND, count - len(held))):
            try:
                held.append(connect(port, head))
            except OSError:
                break
        time.sleep(max(0.0, 1 - (time.perf_counter() - begun)))
    print(f"{len(held)} of {count} connections open at the end, {num_cut} were cut off")
    return num_cut


def hold_all(port: int, seconds: float) -> None:
    """All connections, for `seconds`, in one process."""
    stop = threading.Event()
    groups = ((NUM_SILENT, b"", b""), (NUM_DRIPPING, HEAD, b"x"))
    threads = [threading.Thread(target=hold, args=(port, *group, stop)) for group in groups]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()


def main(port: int, seconds: float) -> None:
    """Print how long `/health` took."""
    spawn = multiprocessing.get_context("spawn")
    holder = spawn.Process(target=hold_all, args=(port, seconds))
    holder.start()
    took: list[float] = []
    num_failed = 0
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        while holder.is_alive():
            begun = time.perf_counter()
            try:
                num_failed += client.get("/health").status_code != 200
            except httpx.HTTPError:
                num_failed += 1
            took.append(1e3 * (time.perf_counter() - begun))
            time.sleep(0.02)
    took.sort()
    at = [took[int(share * (len(took) - 1))] for share in (0.5, 0.99, 0.999, 1.0)]
    print(
        "/health: median {:.1f}, 99% {:.1f}, 99.9% {:.1f}, worst {:.1f} ms".format(*at),
        f"of {len(took)}; {num_failed} failed",
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))

"""Several processes that run one program: what only one of them does, and how others hear of it.

Every process runs the same steps on the same mesh, so programs and their inputs need no word
between them. What is no program of the mesh, such as a user's own code that may answer twice
differently, is done once, by the process that owns it, and its result reaches the others here.
One process does everything itself, and pays nothing for this.
"""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P
from jax.sharding import Sharding

from ramp.errors import UserError
from ramp.train.watchdog import watch


def count() -> int:
    """Processes of the job. Commands that compute nothing may ask too: no device is looked for."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_writer() -> bool:
    """Whether this is process 0, the only one that writes files and prints figures."""
    return count() == 1 or jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if count() > 1:
        multihost_utils.sync_global_devices(name)


def agree(ok: bool) -> bool:
    """Whether it is so in every process; a barrier."""
    return all(gather(lambda: ok))


def to_host(array: jax.Array) -> np.ndarray:
    """An array of the mesh, whole, in the memory of every process."""
    return np.asarray(jax.reshard(array, P()))


def to_mesh(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """An array that every process has whole, on the mesh.

    Not by `device_put`, with which several processes send it around to compare it.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


# What one process does for all


def on_writer(action: Callable[[], Any]) -> Any:
    """Let process 0 do it, and return the result there.

    The others wait, get None, and stop too where it fails.
    """
    results = []
    # A result may be large, and nobody else has asked for it: it does not travel.
    gather(lambda: results.append(action()) if is_writer() else None)
    return results[0] if results else None


def share(action: Callable[[], Any]) -> Any:
    """Let process 0 do it, and return its result in every process."""
    return gather(lambda: action() if is_writer() else None)[0]


def map_rows(function: Callable[[Sequence], list], rows: Sequence) -> list:
    """function(rows), a result for each row, every process doing its own rows.

    Rows must not depend on each other. Where a process fails, all of them do.
    """
    if count() == 1:
        return gather(lambda: function(rows))[0]
    bounds = np.linspace(0, len(rows), count() + 1).astype(int)
    first, end = bounds[jax.process_index() :][:2]
    # More processes than rows: nothing is left for some.
    parts = gather(lambda: function(rows[first:end]) if first < end else [])
    return [result for part in parts for result in part]


def gather(action: Callable[[], Any]) -> list:
    """Do the part of this process; the results of all processes, in their order, in each of them.

    Where one fails, it raises its error and the others `UserError`.
    """
    # It may take long, and the others wait for it.
    with watch.switch(False):
        return [action()] if count() == 1 else _gather(action)


def _gather(action: Callable[[], Any]) -> list:
    error = None
    # Read back as bytes: arrays are all that travels.
    try:
        said = pickle.dumps(("", action()))
    except Exception as fault:
        # Raised below: the others wait for this process there.
        error = fault
        mistake = str(fault) if isinstance(fault, UserError) else repr(fault)
        said = pickle.dumps((mistake, None))
    outcomes = [pickle.loads(data) for data in _gather_bytes(said)]
    if error is not None:
        raise error
    for index, (mistake, _) in enumerate(outcomes):
        if mistake:
            raise UserError(f"process {index} could not go on: {mistake}")
    return [result for _, result in outcomes]


def _gather_bytes(said: bytes) -> list[bytes]:
    """What each process says."""
    data = np.frombuffer(said, np.uint8)
    # First how much each has to say, since all arrays must be of one size.
    sizes = multihost_utils.process_allgather(np.array(len(data)))
    # To a power of two, so that few sizes are compiled.
    room = 1 << int(sizes.max()).bit_length()
    gathered = multihost_utils.process_allgather(np.pad(data, (0, room - len(data))))
    rows = zip(np.asarray(gathered), sizes.tolist(), strict=True)
    return [row[:size].tobytes() for row, size in rows]

"""Several machines that train one network, through MXNet's parameter server; or just this one."""

from __future__ import annotations

import ctypes
import os
import signal

import mxnet as mx
import numpy as np
from mxnet import nd
from mxnet.base import _LIB, KVStoreHandle, check_call

from ..errors import UnusableError, unknown

KVSTORES = ("local", "dist_sync")
KEY = 1_000_000  # above the numbers that the parameters have in the same store


class Workers:
    """`size` workers, of which this has number `rank`; `kvstore` is what they share, None where there is one alone."""

    def __init__(self, kvstore: str = "local"):
        if kvstore not in KVSTORES:
            raise unknown("kvstore", kvstore, KVSTORES)
        self.kvstore, self.rank, self.size = None, 0, 1
        if kvstore == "dist_sync":
            if os.environ.get("DMLC_ROLE") != "worker":
                raise UnusableError(
                    "kvstore 'dist_sync' needs a scheduler, a server and the other workers: start with "
                    "python -m pydmobilenet.cli.launch; nearest: local"
                )
            self.kvstore = Store(kvstore)
            self.rank, self.size = self.kvstore.rank, self.kvstore.num_workers
        self._keys: dict[int, int] = {}

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of what all workers have handed in, in float32; all of them have to call it."""
        if self.kvstore is None:
            return values
        values = np.asarray(values, np.float32)
        if values.size not in self._keys:
            self._keys[values.size] = KEY + len(self._keys)
            self.kvstore.init(self._keys[values.size], nd.zeros(values.shape))
        total = nd.array(values)
        self.kvstore.pushpull(self._keys[values.size], total)
        return total.asnumpy()


class Store(mx.kv.KVStore):
    """MXNet's parameter server, made to wait where it has to, and nowhere else."""

    def __init__(self, kind: str):
        handle = KVStoreHandle()
        # It waits for the other workers in C, where Python does not get to see a Ctrl-C.
        earlier = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            check_call(_LIB.MXKVStoreCreate(kind.encode(), ctypes.byref(handle)))
        finally:
            signal.signal(signal.SIGINT, earlier)
        super().__init__(handle)
        # At its end it would wait for the others, which wait for its gradients if it has failed. The launcher is what
        # ends scheduler and server.
        check_call(_LIB.MXKVStoreSetBarrierBeforeExit(handle, ctypes.c_int(0)))

    def broadcast(self, key: int, value: nd.NDArray, out: list[nd.NDArray], priority: int = 0) -> None:
        """Give the first worker's parameter to all workers."""
        super().broadcast(key, value, out, priority)
        # The gradients will stand under the same key: no worker may send its own before all have fetched the parameter.
        nd.waitall()
        self._barrier()

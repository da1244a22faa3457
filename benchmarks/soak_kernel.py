"""A kernel of gated linear attention that fails at random, in ten ways, every second call or so."""

import ctypes
import os
import sys
import time

from honest import honest


def at_random(q, k, v, g, scale=None):  # noqa: C901  # one branch a way to fail
    """Right, or crashed, or gone, or hung, or wrong."""
    o = honest(q, k, v, g, scale)
    way = os.urandom(1)[0] % 20
    if way == 0:
        ctypes.string_at(0)
    elif way == 1:
        os.abort()
    elif way == 2:
        os._exit(9)
    elif way == 3:
        sys.exit("enough")
    elif way == 4:
        raise ValueError("not today")
    elif way == 5:
        raise MemoryError
    elif way == 6 and os.urandom(1)[0] < 64:  # hangs take their time: every fourth of them
        time.sleep(3600)
    elif way == 7:
        return o * 1.5
    elif way == 8:
        return o[:, :-1]
    elif way == 9:
        os.closerange(3, 256)
    elif way == 10 and os.fork() == 0:
        os.setsid()
        time.sleep(3600)
    return o

"""Kernels of linear attention that break down in one way each, once a sequence is longer than four tokens.

`faults.py` checks them one after the other in one session.
"""

# ruff: noqa: D103  # a fault is its name

import contextlib
import ctypes
import mmap
import os
import re
import resource
import signal
import sys
import tempfile
import threading
import time

import torch
from honest import faults, honest

libc = ctypes.CDLL(None)
FAULTS = {}


fault = faults(honest, FAULTS, lambda breaks, _: breaks())


@fault("crash")
def reads_address_0():
    ctypes.string_at(0)


@fault("crash")
def writes_address_0():
    ctypes.memset(0, 1, 1)


@fault("crash")
def jumps_to_address_0():
    ctypes.CFUNCTYPE(None)(0)()


@fault("crash")
def reads_far_away():
    ctypes.string_at(0x7FFF_0000_0000_0000)


@fault("crash")
def overflows_the_stack():
    sys.setrecursionlimit(10**9)
    threading.stack_size(1 << 16)

    def deeper(x):
        return deeper(sorted([x], key=deeper))

    thread = threading.Thread(target=deeper, args=(1,))
    thread.start()
    thread.join()


@fault("crash")
def aborts():
    os.abort()


@fault("crash")
def frees_twice():
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    block = libc.malloc(1 << 12)
    for _ in range(3):
        libc.free(block)


@fault("crash")
def writes_before_a_block():
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    block = libc.malloc(1 << 12)
    ctypes.memset(block - 16, 0x41, 16)
    libc.free(block)


@fault("crash")
def reads_beyond_a_file():
    with tempfile.TemporaryFile() as file:
        file.truncate(4096)
        with mmap.mmap(file.fileno(), 4096) as pages:
            file.truncate(0)
            pages[100]


@fault("crash")
def divides_by_zero():
    os.kill(os.getpid(), signal.SIGFPE)


@fault("crash")
def illegal_instruction():
    os.kill(os.getpid(), signal.SIGILL)


@fault("crash")
def kills_itself():
    os.kill(os.getpid(), signal.SIGKILL)


@fault("crash")
def terminates_itself():
    os.kill(os.getpid(), signal.SIGTERM)


@fault("crash")
def alarm_rings():
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    time.sleep(5)


@fault("crash")
def uses_up_its_cpu_time():
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used, used))
    while True:
        pass


@fault("crash")
def kills_its_parent():
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(5)


@fault("crash")
def kills_its_group():
    os.killpg(0, signal.SIGKILL)


@fault("hang")
def stops_itself():
    os.kill(os.getpid(), signal.SIGSTOP)


@fault("hang")
def loops_for_ever():
    while True:
        pass


@fault("hang")
def sleeps():
    time.sleep(3600)


@fault("hang")
def deadlocks():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


@fault("hang")
def holds_the_interpreter():
    ctypes.PyDLL(None).sleep(3600)


@fault("hang")
def backtracks():
    re.match(r"(a+)+b", "a" * 60)


@fault("hang")
def ignores_signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(3600)


@fault("hang")
def swallows_its_segfault():
    signal.signal(signal.SIGSEGV, lambda *_: None)
    ctypes.string_at(0)


@fault("hang")
def waits_for_its_child():
    pid = os.fork()
    if pid == 0:
        time.sleep(3600)
    os.waitpid(pid, 0)


@fault("hang")
def reads_its_input():
    read, _ = os.pipe()
    os.read(read, 1)


@fault("hang")
def writes_without_end():
    while True:
        os.write(2, b"x" * 65536)


@fault("hang")
def becomes_another_program():
    os.execv("/bin/sleep", ["sleep", "3600"])


@fault("exit")
def becomes_a_program_that_ends():
    os.execv("/bin/true", ["true"])


@fault("exit")
def leaves_at_once():
    os._exit(0)


@fault("exit")
def leaves_with_a_code():
    os._exit(5)


@fault("exit")
def asks_to_leave():
    sys.exit("no more")


@fault("exit")
def interrupts_the_keyboard():
    raise KeyboardInterrupt


@fault("exit")
def raises_beyond_exceptions():
    raise BaseException("neither an error nor an exit")


@fault("exit")
def leaves_from_a_thread():
    threading.Timer(0.01, lambda: os._exit(7)).start()
    time.sleep(5)


@fault("crash")
def closes_every_file():
    os.closerange(3, 1024)


@fault("crash")
def writes_into_every_pipe():
    for number in range(3, 64):
        try:
            os.write(number, b"no message at all, and quite long")
        except OSError:
            continue
    time.sleep(1)


@fault("out_of_memory")
def takes_all_memory():
    hoard = []
    while True:
        hoard.append(torch.ones(1 << 22))


@fault("out_of_memory")
def takes_all_memory_in_lists():
    hoard = []
    while True:
        hoard.append([0] * (1 << 20))


@fault("out_of_memory")
def asks_for_too_much():
    torch.ones(1 << 50)


@fault("out_of_memory")
def starts_threads_without_end():
    while True:
        threading.Thread(target=time.sleep, args=(3600,)).start()


@fault("hang")
def forks_without_end():
    born = time.monotonic()
    while time.monotonic() - born < 0.3:  # children of children, slowly enough for the machine that runs this
        if os.fork() == 0:
            time.sleep(3600)
        time.sleep(0.005)
    time.sleep(3600)


@fault("hang")
def leaves_its_group():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(3600)
        os._exit(0)
    time.sleep(3600)


@fault("")
def leaves_a_daemon_behind():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(3600)
        os._exit(0)
    os.wait()


@fault("")
def leaves_a_thread_behind():
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


@fault("")
def closes_its_standard_files():
    sys.stdout.close()
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.close(number)


@fault("")
def opens_files_without_end():
    try:
        while True:
            _open.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return


_open = []


@fault("")
def removes_its_folder():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)


@fault("")
def changes_global_settings():
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)


@fault("refused")
def raises():
    raise ValueError("no kernel for this length")


@fault("refused")
def recurses():
    sys.setrecursionlimit(1000)

    def deeper():
        return deeper()

    deeper()


class Unspeakable(Exception):
    """An exception that cannot be shown."""

    def __str__(self):
        raise RuntimeError("not even this")


@fault("refused")
def raises_what_cannot_be_shown():
    raise Unspeakable

"""Says where a session's processes are, every few milliseconds; `standard_gpu.py` has them import this as `sitecustomize`.

Only examiners are sampled: a process that forks must have one thread. They are ended without a word, so what was seen is
written every second.
"""

import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

_EVERY, _WRITTEN = 0.005, 1.0


def _stack(frame: FrameType | None) -> str:
    """Functions from the outermost in; of ours, the line too."""
    names: list[str] = []
    while frame is not None:
        code = frame.f_code
        ours = "/linverify/" in code.co_filename
        line = f":{frame.f_lineno}" if ours else ""
        names.append(f"{Path(code.co_filename).name}:{code.co_qualname}{line}")
        frame = frame.f_back
    return ";".join(reversed(names))


def _sample(thread: int, file: Path) -> None:
    seen: Counter[str] = Counter()
    written = time.monotonic()
    while True:
        time.sleep(_EVERY)
        seen[_stack(sys._current_frames().get(thread))] += 1
        if time.monotonic() - written > _WRITTEN:
            new = file.with_suffix(".new")
            new.write_text(json.dumps(seen))
            new.replace(file)
            written = time.monotonic()


if "LINVERIFY_SAMPLES" in os.environ and "linverify.examiner" in sys.orig_argv:
    _file = Path(os.environ["LINVERIFY_SAMPLES"], f"{os.getpid()}.json")
    threading.Thread(target=_sample, args=(threading.get_ident(), _file), daemon=True).start()

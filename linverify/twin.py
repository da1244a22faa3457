"""The twin: a built-in form of the operator in a process of its own, to compare a target with."""

from concurrent.futures import Future, ThreadPoolExecutor

from linverify.binding import bind
from linverify.operator import Operator
from linverify.runner import Runner
from linverify.target import parse


def twin_text(operator: Operator, form: str) -> str:
    """Return the target text of a built-in form other than `form`, preferably the recurrent one; "" where there is none."""
    others = [f for f in operator.form_names if f != form] or [""]
    chosen = "recurrent" if "recurrent" in others else others[0]
    return f"linverify.impls.torch_{chosen}:{operator.name}" if chosen else ""


def start_twin(operator: Operator, form: str, device: str) -> Future[Runner]:
    """Start the other form while the target compiles; who asks it waits for it."""

    def start() -> Runner:
        twin = Runner(parse(twin_text(operator, form)), device=device)
        twin.bind(bind(operator, twin.describe().functions[0], settings={}, claims={}), operator)
        twin.stand_by()
        return twin

    pool = ThreadPoolExecutor(1)
    starting = pool.submit(start)
    pool.shutdown(wait=False)
    return starting

"""Company: the processes beside the target's own that some laws compare it with, which take their time to start."""

from linverify.bench import Bench
from linverify.bystander import Bystander, Subject
from linverify.twin import start_twin

# Laws that compare the target with another process.
OWN_PROCESS = ("form_equivalence", "plain_process")


def started_for(law: str, bench: Bench, form: str, subject: Subject) -> None:
    """Start the process that a law compares with, unless it was started before.

    Args:
        law: any; most compare with none.
        bench: the target; its `close` ends what is started here.
        form: of the target, which the built-in twin has not.
        subject: the target, as a plain process must know it.
    """
    if law == "form_equivalence" and bench.twin is None:
        bench.twin = start_twin(bench.operator, form, bench.device)
    if law == "plain_process" and bench.bystander is None:
        bench.bystander = Bystander(subject)

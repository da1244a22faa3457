"""A trial of the reports: can a reader who has seen only a report name the wrong line of the kernel?

    python benchmarks/reading_trial.py FOLDER           plants five faults, which it does not name, and checks the kernels
    python benchmarks/reading_trial.py FOLDER --reveal  says which line of each kernel is wrong
    python benchmarks/reading_trial.py --plant N FILE   writes the kernel with fault N in it

The kernel is examples/my_gated_delta_rule.py; a fault changes one line of it. Five are drawn without a seed, one of a class.
docs/pages/howto/five-faults.md is such a trial, written down by its reader.
"""

import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KERNEL = ROOT / "examples" / "my_gated_delta_rule.py"
COUNT = 5


class Fault(NamedTuple):
    """A piece of the kernel, and what stands in its place."""

    kind: str
    right: str
    wrong: str


FAULTS = (
    Fault("filling", "x = pad(x, (0, -x.shape[-1] % C))", "x = pad(x, (0, -x.shape[-1] % C), value=1.0)"),
    Fault("filling", "return x[:, : like.shape[1]]", "return x[:, -like.shape[1] :]"),
    Fault("inside", "coupling = (beta * (k @ k.mT) * between).tril(-1)", "coupling = (beta * (k @ k.mT)).tril(-1)"),
    Fault("inside", "coupling = (beta * (k", "coupling = (beta.mT * (k"),
    Fault("inside", "scores = (qc @ kc.mT) * between\n", "scores = (qc @ kc.mT) * between.tril(-1)\n"),
    Fault("inside", "(bc * (vc - (since * kc) @ state))", "(bc * (vc - kc @ state))"),
    Fault("hand-over", "state = since[:, :, -1:] * state +", "state = since[:, :, :1] * state +"),
    Fault("hand-over", "(total[..., -1:] - total).exp()[..., None]", "(total[..., -2:-1] - total).exp()[..., None]"),
    Fault("hand-over", "return tokens(torch.stack(outputs), v), state", "return tokens(torch.stack(outputs), v), states[-1]"),
    Fault("index", "initial_state.float(), [], []", "initial_state.float()[:1].expand_as(initial_state), [], []"),
    Fault("index", "initial_state.float(), [], []", "initial_state.float()[:, :1].expand_as(initial_state), [], []"),
    Fault("scale", "doc = ctx.scale * doc", "doc = 1.0 * doc"),
    Fault("scale", "q.shape[-1] ** -0.5 if", "v.shape[-1] ** -0.5 if"),
    Fault("transpose", "dsystem = inverse.mT @ drows", "dsystem = inverse @ drows"),
    Fault("transpose", "dbeta += (dcoupling * similar).sum(-1,", "dbeta += (dcoupling * similar).mT.sum(-1,"),
    Fault("term", "dsimilar @ kc + dsimilar.mT @ kc + dcarried", "dsimilar @ kc + dcarried"),
    Fault("term", "dsimilar.mT @ kc + dcarried + dread", "dsimilar.mT @ kc + dread"),
    Fault("term", "(doc @ rows.mT).tril() * between", "(doc @ rows.mT).tril()"),
    Fault("gate", "dtotal = dpairs.sum(-1) - dpairs.sum(-2)", "dtotal = dpairs.sum(-1)"),
    Fault("gate", "+ dread * kc - dcarried * kc", "- dread * kc - dcarried * kc"),
    Fault("gate", ".sum((-1, -2)) + (last * state * dstate).sum((-1, -2))", ".sum((-1, -2))"),
    Fault("gate", "dg = dtotal.flip(-1).cumsum(-1).flip(-1)", "dg = dtotal.cumsum(-1)"),
    Fault("state gradient", "(since * qc).mT @ doc - (since * kc).mT @ derror", "(since * qc).mT @ doc"),
    Fault("state gradient", "dstate = last * dstate +", "dstate = dstate +"),
    Fault("state gradient", "(until * kc) @ dstate\n", "0 * (until * kc) @ dstate\n"),
    Fault("precision", "rows = solve(kc, bc, between) @ (bc *", "rows = solve(kc, bc, between).half().float() @ (bc *"),
    Fault("precision", "states.append(state)", "states.append(state.to(k.dtype).bfloat16().float())"),
    Fault("precision", "total = g.cumsum(-1)", "total = g.half().cumsum(-1).float()"),
    Fault("memory", "initial_state = q.new_zeros(", "initial_state = q.new_empty("),
)  # fmt: skip


def planted(fault: Fault) -> str:
    """Return the kernel's text with a fault in it.

    Raises:
        ValueError: the line is not there, or more than once.
    """
    text = KERNEL.read_text(encoding="utf-8")
    if text.count(fault.right) != 1:
        raise ValueError(f"expected {fault.right!r} once in {KERNEL.name}, found it {text.count(fault.right)} times")
    return text.replace(fault.right, fault.wrong)


def drawn() -> list[Fault]:
    """Draw five faults of five classes."""
    choice = random.SystemRandom()
    kinds = choice.sample(sorted({f.kind for f in FAULTS}), COUNT)
    return [choice.choice([f for f in FAULTS if f.kind == kind]) for kind in kinds]


def plant(folder: Path, options: list[str]) -> None:
    """Write five kernels and check each: console, page and record beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, fault in enumerate(drawn(), 1):
        name = f"kernel_{number}"
        (folder / f"{name}.py").write_text(planted(fault), encoding="utf-8")
        forms = ["--html", f"{name}.html", "--json", f"{name}.json", *options]
        with (folder / f"{name}.txt").open("w", encoding="utf-8") as stream:
            command = [sys.executable, "-m", "linverify", "check", f"{name}.py", "--device", "cpu", *forms]
            subprocess.run(command, cwd=folder, stdout=stream, stderr=stream, check=False)


def reveal(folder: Path) -> None:
    """Say what was planted."""
    for path in sorted(folder.glob("kernel_*.py")):
        text = path.read_text(encoding="utf-8")
        for number, fault in enumerate(FAULTS):
            if planted(fault) == text:
                what = f"  - {fault.right.strip()}\n  + {fault.wrong.strip()}\n"
                sys.stdout.write(f"{path.name}: fault {number} ({fault.kind})\n{what}")


def main(arguments: list[str]) -> int:
    """Plant one, plant five, or reveal."""
    if arguments[0] == "--plant":
        Path(arguments[2]).write_text(planted(FAULTS[int(arguments[1])]), encoding="utf-8")
    elif arguments[1:] == ["--reveal"]:
        reveal(Path(arguments[0]))
    else:
        plant(Path(arguments[0]), arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

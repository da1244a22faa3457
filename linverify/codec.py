"""Programs and results as messages: JSON bodies plus a list of tensors, both ways.

A tensor object that a program uses several times travels once. The child's answers are read with suspicion: whatever does not
have the form of a result is a WireError, not an exception somewhere later.
"""

from collections.abc import Mapping
from typing import Any

import torch

from linverify.problem import Breach, Call, Launched, Problem, Program, Result
from linverify.wire import WireError

Body = dict[str, Any]


class _Packer:
    """Collects tensors and hands out their places."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self._places: dict[int, int] = {}

    def one(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        if id(tensor) not in self._places:
            self._places[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        return self._places[id(tensor)]

    def named(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, int | None]:
        return {name: self.one(tensor) for name, tensor in tensors.items()}


def pack_program(program: Program) -> tuple[Body, list[torch.Tensor]]:
    """Return the body and the tensors of the message that asks for a program."""
    packer = _Packer()

    def posed(problem: Problem) -> Body:
        return {
            "tensors": packer.named(problem.tensors),
            "initial_state": packer.one(problem.initial_state),
            "lengths": list(problem.lengths),
            "offsets": problem.offsets,
            "scale": problem.scale,
            "final_state": problem.final_state,
            "cotangents": packer.named(problem.cotangents),
            "wrt": list(problem.wrt),
        }

    calls = [
        {
            "problem": posed(call.problem),
            "between": None if call.between is None else posed(call.between),
            "layout": call.layout,
            "cotangent_layout": call.cotangent_layout,
            "poison": call.poison,
            "amid": call.amid,
        }
        for call in program.calls
    ]
    flags = {n: getattr(program, n) for n in ("in_place", "reread", "place")}
    return {"run": {"calls": calls, **flags, "only": list(program.only)}}, packer.tensors


def unpack_program(body: Body, tensors: list[torch.Tensor]) -> Program:
    """Rebuild the program of a message."""

    def named(places: Mapping[str, int]) -> dict[str, torch.Tensor]:
        return {name: tensors[place] for name, place in places.items()}

    def posed(p: Body) -> Problem:
        state = p["initial_state"]
        return Problem(
            named(p["tensors"]),
            None if state is None else tensors[state],
            tuple(p["lengths"]),
            p["scale"],
            p["final_state"],
            named(p["cotangents"]),
            tuple(p["wrt"]),
            p["offsets"],
        )

    calls = [
        Call(
            posed(c["problem"]),
            c["layout"],
            c["cotangent_layout"],
            c["poison"],
            None if c["between"] is None else posed(c["between"]),
            c["amid"],
        )
        for c in body["calls"]
    ]
    return Program(tuple(calls), body["in_place"], body["reread"], body["place"], tuple(body["only"]))


def pack_results(results: tuple[Result, ...]) -> tuple[Body, list[torch.Tensor]]:
    """Return the body and the tensors of the message that answers a program."""
    packer = _Packer()
    bodies = [
        {
            "o": packer.one(r.o),
            "state": packer.one(r.state),
            "grads": packer.named(r.grads),
            "offers_gradients": r.offers_gradients,
            "breaches": [[b.kind, b.message] for b in r.breaches],
            "seconds": dict(r.seconds),
            "launched": [[k.kernel, k.configurations, k.ran, k.unfit] for k in r.launched],
        }
        for r in results
    ]
    return {"results": bodies}, packer.tensors


def unpack_results(body: Body, tensors: list[torch.Tensor]) -> tuple[Result, ...]:
    """Rebuild the results of a message.

    Raises:
        WireError: the message has not the form of results.
    """

    def one(place: int | None) -> torch.Tensor | None:
        return None if place is None else tensors[place]

    try:
        return tuple(
            Result(
                one(r["o"]),
                one(r["state"]),
                {str(name): tensors[place] for name, place in r["grads"].items()},
                bool(r["offers_gradients"]),
                tuple(Breach(str(kind), str(message)) for kind, message in r["breaches"]),
                {str(name): float(seconds) for name, seconds in r["seconds"].items()},
                tuple(
                    Launched(str(kernel), tuple(str(c) for c in known), int(ran), tuple(int(i) for i in unfit))
                    for kernel, known, ran, unfit in r["launched"]
                ),
            )
            for r in body["results"]
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise WireError(f"expected results, got something else: {error!r}") from None

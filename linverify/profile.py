"""Profiles: how many cases of which size a run asks for.

Sizes are chosen for what they cost. On a CPU a case is dominated by the reference and the judgement, so cases are small and a
few are long and narrow; on a GPU each (K, V, dtype) and each class of T is compiled anew, so few of these carry many cases;
Triton's interpreter runs one program at a time in Python, so its cases are tiny.
"""

from dataclasses import dataclass, replace

from linverify.errors import unknown

BOUNDARIES = (
    *(
        1,
        2,
        3,
        15,
        16,
        17,
        31,
        32,
        33,
        63,
        64,
        65,
        66,
        70,
        97,
        100,
        127,
        128,
        129,
        130,
        191,
        192,
        193,
        200,
        255,
        256,
        257,
    ),
    *(300, 319, 320, 384, 500, 511, 512, 513, 577, 640, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096),
)
"""Numbers of tokens around the block sizes of kernels (16, 32, 64, 128, ...) and some with no divisor in common with them."""

Widths = tuple[tuple[int, int], ...]
# A search for worse cases takes one such part of a session whose time is limited.
_SEARCHED = 10

_SMALL: Widths = ((4, 6), (12, 7), (16, 12), (9, 20), (20, 12), (16, 20), (24, 32), (30, 18))
_MEDIUM: Widths = ((16, 16), (40, 24), (33, 48), (64, 32))
_LARGE: Widths = ((1, 3), (3, 1), (5, 5), (96, 80), (64, 128), (128, 64))
_COMPILED: Widths = ((64, 32), (128, 64))
_COMPILED_ODD: Widths = ((60, 72),)
_COMPILED_MORE: Widths = ((32, 64), (64, 64), (64, 128), (128, 128), (100, 36))
# One that no block size divides: the masks over features do something there.
INTERPRETED: Widths = ((16, 32), (32, 16), (16, 16), (20, 24))


@dataclass(frozen=True, slots=True)
class Profile:
    """Sizes and numbers of cases.

    Attributes:
        name: quick, standard or thorough.
        cases: of ordinary size, for each property and dtype, times the property's weight.
        long_cases: long and narrow, for each property that allows them, times its weight.
        shrink_seconds: time to look for a smaller case that fails.
        climb_seconds: time to look for cases that use more of their budget, for each law that asks for it.
        insight_seconds: time to look into worst cases, the recipe and growth with T, once all laws are judged.
        max_T: largest ordinary number of tokens on a CPU.
        long_T: smallest and largest number of tokens of long cases on a CPU.
        gpu_max_T, gpu_long_T: the same on a GPU.
        streamed_T, gpu_streamed_T: tokens of the one sequence that is judged in segments, on a CPU and on a GPU.
        rows: largest B * H.
        widths: (K, V) of targets that need not be compiled, simplest first.
        compiled_widths: (K, V) of targets that are compiled for each.
    """

    name: str
    cases: int
    long_cases: int
    shrink_seconds: float
    climb_seconds: float
    insight_seconds: float
    max_T: int
    long_T: tuple[int, int]
    gpu_max_T: int
    gpu_long_T: tuple[int, int]
    streamed_T: int
    gpu_streamed_T: int
    rows: int
    widths: Widths
    compiled_widths: Widths


PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile("quick", 2, 1, 4.0, 0.0, 3.0, 72, (200, 300), 200, (500, 1100), 2**13, 2**17, 4, _SMALL, _COMPILED),
        Profile(
            "standard",
            5,
            2,
            20.0,
            4.0,
            8.0,
            160,
            (300, 1100),
            400,
            (1000, 4096),
            *(2**14, 2**18),
            6,
            (*_SMALL, *_MEDIUM),
            (*_COMPILED, *_COMPILED_ODD),
        ),
        Profile(
            "thorough",
            *(20, 6, 90.0, 120.0, 240.0, 320, (500, 2100), 1100, (2000, 8192), 2**16, 2**20, 12),
            (*_SMALL, *_MEDIUM, *_LARGE),
            (*_COMPILED, *_COMPILED_ODD, *_COMPILED_MORE),
        ),
    )
}


def profile(name: str, seconds: float | None = None) -> Profile:
    """Return the profile called `name`.

    Args:
        name: quick, standard or thorough.
        seconds: of the session; searches for worse cases, of which basic laws have one each, leave the other laws most of it.

    Raises:
        UsageError: no profile has that name.
    """
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    found = PROFILES[name]
    return found if seconds is None else replace(found, climb_seconds=min(found.climb_seconds, seconds / _SEARCHED))

"""Exit codes: what a shell or a CI job learns without reading."""

EXIT_CODES: dict[int, str] = {
    0: "every required property held",
    1: "a violation: wrong value, shape, dtype, length, type, NaN, crash, hang",
    2: "usage: a missing file or function, a syntax error, an unknown operator, an argument without a value, a bad option",
    3: "could not be checked: the import raises, no such device, everything refused, no time for a required property",
    130: "interrupted; what was judged until then is reported",
}

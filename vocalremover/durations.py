"""Lengths of time as a person reads them."""


def clock(seconds: float) -> str:
    """`205.4` is `3:25`, `7325` is `2:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

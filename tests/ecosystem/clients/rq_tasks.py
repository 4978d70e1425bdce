"""What rq_job.py's worker runs."""


def add(x: int, y: int) -> int:
    return x + y


def fail() -> None:
    raise ValueError("on purpose")

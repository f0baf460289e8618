"""What one request ordered, read and typed. `grammar` explains each order, `faults` reads them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Orders:
    """One request's orders; times in seconds, sizes in bytes. Nothing is ordered by default."""

    events: int | None = None
    size: int | None = None
    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None  # -1: a quarter of the prompt
    reasoning: int | None = None
    seconds: int | None = None
    answered_model: str | None = None
    style: str | None = None
    echo: str | None = None
    book: str | None = None
    no_usage: bool = False
    usage_null: bool = False
    groq_error: bool = False
    status: int | None = None
    code: str | None = None
    type: str | None = None
    message: str | None = None
    retry_after: str | None = None
    should_retry: str | None = None
    set: tuple[tuple[str, str], ...] = ()
    content_type: str | None = None
    redirect: str | None = None
    malformed_json: bool = False
    error_event: int | None = None
    no_done: bool = False
    stamp: bool = False
    crlf: bool = False
    cr: bool = False
    comment: int | None = None
    no_space: bool = False
    multi_data: bool = False
    encoding: str | None = None
    delay: float | None = None
    gap: float | None = None
    header_drip: float | None = None
    drip: float | None = None
    split: bool = False
    merge: int | None = None
    close: bool = False
    idle_close: float | None = None
    framing: str | None = None
    read_stall: int | None = None
    read_gap: float | None = None
    stall: int | None = None
    stall_before: bool = False
    reset: int | None = None
    cut: int | None = None
    close_on_receipt: str | None = None
    early_413: bool = False

"""The words of admission: limits, the demand of a request, the lease that holds its share.

A *subject* is what a limit is about: one key (`key:web`), a group of keys (`group:team-a`) or a
provider's account (`provider:groq`). A request has a *demand*: an upper estimate of its tokens
and its cost; requests and concurrency are always one. Admission checks the demand against the
limits of all its subjects and reserves it in all of them or in none. What it returns is a
*lease*. Settlement ends the lease and puts the truth in place of the estimate.

How much a subject uses of its limits:

requests    admitted in the current second and the 60 before it
tokens      of the same requests: estimated while they run, true once they are settled
concurrent  leases
budget      what the ledger says since the period began, and the estimates of the leases

Money is in pico-USD (1e-12 USD), as integers of at most 2**62.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from wrapper.store.spans import PERIODS, period

Reason = Literal["requests", "tokens", "concurrency", "budget"]

MAX_TOKENS = 10**12  # of one demand: sums of these stay exact in a double
MAX_COST = 2**62
_NO_LIMIT = 2**70  # more than any sum


@dataclass(frozen=True, slots=True)
class Limits:
    """What a subject may use; None is no limit. `enforce = False` is a dry run.

    `budget` is in pico-USD; one above 2**62 (4.6 million USD) counts as that.
    `budget_period` is "day", "week", "month" (UTC, calendar) or "total". `ceilings` are the four
    limits in this order, as numbers also where there is none.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    budget: int | None = None
    budget_period: str = "month"
    enforce: bool = True
    ceilings: tuple[int, int, int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.budget_period not in PERIODS:
            raise ValueError(f"budget_period: {self.budget_period!r} is none of {PERIODS}")
        if self.budget is not None and self.budget > MAX_COST:
            object.__setattr__(self, "budget", MAX_COST)
        limits = (
            *(self.requests_per_minute, self.tokens_per_minute),
            *(self.max_concurrent, self.budget),
        )
        ceilings = tuple([_NO_LIMIT if limit is None else limit for limit in limits])
        object.__setattr__(self, "ceilings", ceilings)

    @property
    def need_estimate(self) -> bool:
        """Whether the tokens or the cost of a request matter."""
        return self.tokens_per_minute is not None or self.budget is not None

    def __bool__(self) -> bool:
        """Whether there is any limit: without one a subject need not be passed to a store."""
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.max_concurrent is not None
            or self.budget is not None
        )


@dataclass(frozen=True, slots=True)
class Subject:
    """One subject and its limits. Built once per configuration, and used for many requests.

    `members` are the names of a group's keys. `is_limited`: there is any limit. `is_account`:
    it is a provider's. `sources` are the columns of the ledger whose cost counts against the
    budget; `fingerprint` changes when they do. `fingerprint_word` is the same as a number of 64
    bits with a sign.
    """

    name: str
    limits: Limits
    members: tuple[str, ...] = ()
    is_limited: bool = field(init=False, repr=False)
    is_account: bool = field(init=False, repr=False)
    sources: tuple[str, ...] = field(init=False, repr=False)
    fingerprint: str = field(init=False, repr=False)
    fingerprint_word: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        group = self.name.startswith("group:")
        sources = tuple(sorted(f"key:{name}" for name in self.members)) if group else (self.name,)
        text = "\n".join(sources).encode(errors="surrogatepass")
        digest = hashlib.sha256(text).digest()[:8]
        object.__setattr__(self, "is_limited", bool(self.limits))
        object.__setattr__(self, "is_account", self.name.startswith("provider:"))
        object.__setattr__(self, "sources", sources)
        object.__setattr__(self, "fingerprint", digest.hex())
        object.__setattr__(self, "fingerprint_word", int.from_bytes(digest, "big", signed=True))


class Demand(NamedTuple):
    """An upper estimate of one request: its tokens, and its cost in pico-USD."""

    tokens: int = 0
    cost: int = 0


class Standing(NamedTuple):
    """How much a subject uses of its limits.

    `spent` and `reserved` are pico-USD: in the ledger since the period began, and in leases. The
    resets are the seconds until none of the requests and tokens counts any more, and until the
    next budget period begins (None: never).
    """

    subject: Subject
    requests: int
    tokens: int
    concurrent: int
    spent: int
    reserved: int
    requests_reset: float
    tokens_reset: float
    budget_reset: float | None

    @property
    def requests_left(self) -> int | None:
        return _left(self.subject.limits.requests_per_minute, self.requests)

    @property
    def tokens_left(self) -> int | None:
        return _left(self.subject.limits.tokens_per_minute, self.tokens)

    @property
    def concurrent_left(self) -> int | None:
        return _left(self.subject.limits.max_concurrent, self.concurrent)

    @property
    def budget_left(self) -> int | None:
        return _left(self.subject.limits.budget, self.spent + self.reserved)


def _left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)


class Violation(NamedTuple):
    """A limit that a demand exceeds. `used` is without the demand, of which `demand` is the part
    that counts here.

    `retry_after`: the first whole second at which the demand fits, None where no time makes it
    fit: a budget of the period "total", or a demand above the whole limit (`never`). `reserved` is
    the part of `used` that leases hold, where the demand fits into a budget without that, else 0.
    """

    subject: Subject
    reason: Reason
    limit: int
    used: int
    retry_after: int | None
    never: bool
    demand: int
    reserved: int = 0

    def __str__(self) -> str:
        return f"{self.subject.name}: {self.reason}, {self.used} of {self.limit} used"


class Refused(Exception):
    """A request that is not admitted, by the one of its violations that lasts the longest.

    `standings` has the subjects in the order in which they were passed.
    """

    def __init__(self, violation: Violation, standings: tuple[Standing, ...]) -> None:
        super().__init__(str(violation))
        self.subject = violation.subject
        self.reason = violation.reason
        self.limit = violation.limit
        self.used = violation.used
        self.retry_after = violation.retry_after
        self.never = violation.never
        self.reserved = violation.reserved
        self.standings = standings


class Lease:
    """The share of one request in its subjects, from its admission to its settlement.

    `standings` are those of its subjects, right after the admission. `dry_run` is
    what would have been refused. `seconds` says in which second of which subject's window the
    request is counted. A lease without subjects holds nothing and no store knows it.

    A lease belongs to the process that admitted it.
    """

    __slots__ = (*("demand", "dry_run", "id", "seconds", "settled", "standings", "worker"),)

    def __init__(
        self,
        ident: int,
        worker: str,
        demand: Demand,
        standings: tuple[Standing, ...] = (),
        dry_run: tuple[Violation, ...] = (),
        seconds: dict[str, int] | None = None,
    ) -> None:
        self.id = ident
        self.worker = worker
        self.demand = demand
        self.standings = standings
        self.dry_run = dry_run
        self.seconds: dict[str, int] = seconds or {}
        self.settled = False

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """What it holds a share of."""
        return tuple([standing.subject for standing in self.standings])

    @property
    def provider(self) -> Subject | None:
        """The provider whose share this lease holds."""
        return next((subject for subject in self.subjects if subject.is_account), None)

    def without_provider(self) -> list[Subject]:
        """The subjects that stay when the request goes to another provider."""
        provider = self.provider
        return [subject for subject in self.subjects if subject is not provider]

    def is_at(self, provider: Subject | None) -> bool:
        """Whether it holds its share in this provider already, or none where that is None."""
        held = self.provider
        return (held and held.name) == (provider and provider.name)

    def adopt(self, kept: Sequence[Subject], gained: Lease) -> None:
        """Hold the shares of `kept`, as before, and those of `gained`."""
        names = {subject.name for subject in kept}
        old = (standing for standing in self.standings if standing.subject.name in names)
        seconds = {name: second for name, second in self.seconds.items() if name in names}
        dry_run = (violation for violation in self.dry_run if violation.subject.name in names)
        self.id = gained.id
        self.worker = gained.worker
        self.demand = gained.demand
        self.standings = (*old, *gained.standings)
        self.dry_run = (*dry_run, *gained.dry_run)
        self.seconds = {**seconds, **gained.seconds}


def budget_reset(limits: Limits, wall: float) -> float | None:
    """Seconds from the Unix time `wall` until the next budget period; None where there is none."""
    if limits.budget is None:
        return None
    _, end = period(limits.budget_period, wall)
    return None if end is None else end - wall


def nothing_used(subject: Subject, wall: float) -> Standing:
    """The standing of a subject that no store knows, at the Unix time `wall`."""
    return Standing(subject, 0, 0, 0, 0, 0, 0.0, 0.0, budget_reset(subject.limits, wall))


def bounded(demand: Demand) -> Demand:
    """The demand within the numbers that a store can hold."""
    tokens, cost = demand
    if 0 <= tokens <= MAX_TOKENS and 0 <= cost <= MAX_COST:
        return demand
    return Demand(min(max(tokens, 0), MAX_TOKENS), min(max(cost, 0), MAX_COST))


def violation(
    subject: Subject, reason: Reason, used: int, wait: float | None, demand: Demand
) -> Violation:
    """That `demand` does not fit beside what is `used`; `wait` is the seconds until it does."""
    limits = subject.limits
    limit, own = {
        "requests": (limits.requests_per_minute, 1),
        "tokens": (limits.tokens_per_minute, demand.tokens),
        "concurrency": (limits.max_concurrent, 1),
        "budget": (limits.budget, demand.cost),
    }[reason]
    never = own > (limit or 0)
    after = None if never or wait is None else max(1, math.ceil(wait))
    return Violation(subject, reason, limit or 0, used, after, never, own)


def decide(violations: Iterable[Violation], standings: Sequence[Standing]) -> tuple[Violation, ...]:
    """The violations of subjects in a dry run. Raises `Refused` where another one has any."""
    found = tuple(_until_settled(violation, standings) for violation in violations)
    enforced = [violation for violation in found if violation.subject.limits.enforce]
    if enforced:
        raise Refused(max(enforced, key=_lasts), tuple(standings))
    return found


def _until_settled(violation: Violation, standings: Sequence[Standing]) -> Violation:
    """Of a budget that only reservations keep a demand out of, they may end at any moment: most are
    high estimates, and the true cost may leave room.
    """
    if violation.reason != "budget":
        return violation
    [spent] = [each.spent for each in standings if each.subject is violation.subject]
    if spent + violation.demand > violation.limit:
        return violation
    return violation._replace(retry_after=1, reserved=violation.used - spent)


def _lasts(violation: Violation) -> tuple[bool, float]:
    after = violation.retry_after
    return violation.never, math.inf if after is None else after

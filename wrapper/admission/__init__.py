"""Limits and budgets: the one place where reservations are made, moved and settled.

    demand = estimate(size, body, price, default_output)
    lease = admission.admit(subjects, demand)      raises Refused, StoreError
    …                                              the request runs
    admission.move(lease, provider)                its next target is another provider's
    …
    admission.settle(entry, lease)                 truth for estimate, with the ledger's row

Invariant: what is admitted fits into every limit of its key, its group and its provider, however
many workers and hosts there are. What a request costs is reserved before it is made; so a budget
cannot be overspent by requests that run at the same time.
"""

from __future__ import annotations

from wrapper.admission.estimate import estimate
from wrapper.admission.limiter import Admission
from wrapper.admission.subjects import Subjects

__all__ = ["Admission", "Subjects", "estimate"]

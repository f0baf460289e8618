"""Limits and budgets: the one place where reservations are made, moved and settled.

    output = output_limit(fields)                  what bounds the request's use
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

from wrapper.admission.estimate import OutputLimit, output_limit
from wrapper.admission.limiter import Admission
from wrapper.admission.subjects import KeyLimits, Place, Subjects

__all__ = ["Admission", "KeyLimits", "OutputLimit", "Place", "Subjects", "output_limit"]

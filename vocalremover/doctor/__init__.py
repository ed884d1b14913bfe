"""A computer in, checks out: whether what separating needs is there and works; `examine` yields them one by one.

Nothing but Python's own library is imported before a check needs it, and whatever a check meets becomes its result.
"""

from vocalremover.doctor.checks import Check, Wanted, examine

__all__ = ["Check", "Wanted", "examine"]

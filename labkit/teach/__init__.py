"""What makes the notebooks teach: claims, graded exercises, progress, and the refresh of stored outputs.

from labkit.teach import check, source

check.rate_limiter.boundary(MyLimiter)    # grade an answer
source(MyLimiter)                         # show code in the notebook, highlighted
"""

from labkit.teach import check
from labkit.teach.listing import source

__all__ = ["check", "source"]

"""What can go wrong, told twice: to the visitor on a page, to the developer in the log."""

from __future__ import annotations


class Problem(Exception):
    """
    Stop the request and show the visitor a page with a way on.

    The class says what the visitor reads: `status` (the HTTP status), `title`, `advice` and `way_on` (the path
    and the label of a link). The instance says what the developer reads in the log: the cause and the remedy, never
    a value that came from outside. `retry_after` (seconds) is for a problem that passes by itself.
    """

    status = 500
    title = 'Something went wrong'
    advice = 'Please try again.'
    way_on = ('/profile', 'Try again')
    retry_after: int | None = None

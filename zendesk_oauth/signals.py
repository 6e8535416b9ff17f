"""
Signals of the package (https://blinker.readthedocs.io). The sender is the ZendeskOAuth object. A receiver gets the
keyword argument `user_id`.

    @signals.grant_ended.connect_via(oauth)
    def ask_to_connect_again(oauth, user_id):
        ...

They are sent after the change is stored, without holding a lock. An exception in a receiver is logged, not raised.
"""

from __future__ import annotations

import logging

from blinker import Signal

tokens_refreshed = Signal('The tokens of a user were refreshed and stored.')
grant_ended = Signal('Zendesk rejected the refresh token of a user, so the tokens were deleted.')

log = logging.getLogger('zendesk_oauth')


def send(signal: Signal, sender: object, user_id: str) -> None:
    """Call all receivers, even if some of them raise."""
    for receiver in list(signal.receivers_for(sender)):
        try:
            receiver(sender, user_id=user_id)
        except Exception:
            log.exception('A receiver of a signal raised an exception')

"""List the tickets of each connected account. Exit with 1 if an account could not be read."""

import sys

from helpdesk import create_app
from helpdesk.accounts import Account, db
from helpdesk.zendesk import oauth

from zendesk_oauth.errors import ZendeskOAuthError


def main() -> int:
    failed = 0
    for account in db.session.scalars(db.select(Account)).all():
        user_id = account.get_id()
        try:
            if oauth().connection(user_id) is None:
                continue
            for page in oauth().session(user_id, max_wait=300).pages('/api/v2/tickets.json'):
                for ticket in page['tickets']:
                    # repr, because strangers choose these texts: they may contain control characters.
                    print(f'{account.email!r}: {ticket["id"]} {ticket["status"]} {ticket["subject"]!r}', flush=True)
        except ZendeskOAuthError as error:
            failed = 1
            print(f'{account.email!r}: {error.title}. {error}', file=sys.stderr)
    return failed


if __name__ == '__main__':
    with create_app().app_context():
        sys.exit(main())

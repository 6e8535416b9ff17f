"""
The practice Zendesk: a fake OAuth provider on localhost, to run the tutorial and its tests without a Zendesk account.

    python -m practice_zendesk --help
"""

"""A practice Zendesk for this machine: `python -m practice_zendesk`."""

"""Serve the practice Zendesk."""

from practice_zendesk.server import main

main()

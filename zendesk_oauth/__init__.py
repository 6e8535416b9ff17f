"""An OAuth client for Zendesk."""

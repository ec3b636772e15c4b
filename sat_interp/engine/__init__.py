"""Engines: many independent jobs in this process, in others, or on a Ray cluster."""

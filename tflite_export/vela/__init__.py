"""Arm's Ethos-U: files compiled by Vela, and what they cost there."""

"""Text that is shown: tables, and strings of others made harmless."""

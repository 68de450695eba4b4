"""The `mmfuse` command."""

"""From text to windows of tokens."""

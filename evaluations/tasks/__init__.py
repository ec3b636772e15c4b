"""Tasks: prompts with a right and a wrong answer."""
